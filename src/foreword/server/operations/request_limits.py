"""`RequestLimits`: the largest body of a request, and how long the server waits for its parts."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.errors import AnswerTimeout, BodyTooLarge, ForewordError
from foreword.server.operations.error_handlers import error_response

BODY_TIMEOUT = 30.0
"""Seconds that the next part of a body may take."""


class RequestLimits:
    """ASGI middleware: answers 413 to a body that is too large, before or while it is read, and 504 to one that stalls.

    Args:
        max_body_bytes: bound of a request's body.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            return await error_response(self._too_large())(scope, receive, send)
        received, complete, responded = 0, False, False
        failure: ForewordError | None = None

        async def limited_receive() -> Message:
            nonlocal received, complete, failure
            if complete:  # from here on it only says that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_TIMEOUT)
            except TimeoutError:
                failure = AnswerTimeout(f"no part of the body came for {BODY_TIMEOUT:g} s; send it faster.")
                raise failure from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._max_body_bytes:
                failure = self._too_large()
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

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_body_bytes:,} bytes; send less at once.")
