"""`RequestLimits`: the largest body of a request, and how long it may take to come."""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.errors import BodyTooLarge, ForewordError, RequestError, RequestTimeout
from foreword.server.operations.error_handlers import error_response

MAX_BODY_BYTES = 64 << 20
MAX_JSON_BYTES = 4 << 20
BODY_TIMEOUT = 120.0
PART_TIMEOUT = 30.0
"""Seconds that the next part of a body may take."""
_LENGTH = re.compile("[0-9]{1,18}")


class RequestLimits:
    """ASGI middleware: answers 413 to a body that is too large, before or while it is read, and 408 to a slow one.

    Args:
        max_body_bytes: bound of an upload, which is multipart.
        max_json_bytes: bound of any other body.
        timeout_body: seconds in which all of a body must have come.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_json_bytes: int = MAX_JSON_BYTES,
        timeout_body: float = BODY_TIMEOUT,
    ) -> None:
        self._app, self._timeout = app, timeout_body
        self._max_upload, self._max_json = max_body_bytes, min(max_json_bytes, max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        limit = self._max_upload if headers.get("content-type", "").startswith("multipart/") else self._max_json
        declared = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(declared):
            wrong = RequestError("Content-Length must be a number of at most 18 digits; send the bytes of the body.")
            return await error_response(wrong)(scope, receive, send)
        if int(declared) > limit:
            return await error_response(_too_large(limit))(scope, receive, send)
        deadline = asyncio.get_running_loop().time() + self._timeout
        received, complete, responded = 0, False, False
        failure: ForewordError | None = None

        async def limited_receive() -> Message:
            nonlocal received, complete, failure
            if complete:  # from here on it only says that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline), asyncio.timeout(PART_TIMEOUT):
                    message = await receive()
            except TimeoutError:
                times = f"{self._timeout:g} s, or no part of it in {PART_TIMEOUT:g} s"
                failure = RequestTimeout(f"the body did not come in {times}; send it faster.")
                raise failure from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                failure = _too_large(limit)
                raise failure
            return message

        async def tracked_send(message: Message) -> None:
            nonlocal responded
            if failure is None:
                responded = True
                await send(message)

        try:
            await self._app(scope, limited_receive, tracked_send)
        except ForewordError as error:
            if error is not failure:
                raise
        # A parser that catches the error responds with one of its own, which was held back.
        if failure is not None and not responded:
            await error_response(failure)(scope, receive, send)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit:,} bytes; send less at once.")
