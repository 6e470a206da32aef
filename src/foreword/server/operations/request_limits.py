"""`RequestLimits`: how large a request may be, and how long the server waits for it."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.errors import AnswerTimeout, BodyTooLarge, ForewordError
from foreword.server.operations.error_handlers import refusal

BODY_SECONDS = 30.0
"""How long the next part of a body may take."""


class RequestLimits:
    """ASGI middleware: refuses a body that is too long before it is read, and one that never comes.

    Args:
        body_bytes: of a request's body at most.
    """

    def __init__(self, app: ASGIApp, body_bytes: int) -> None:
        self._app = app
        self._most = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > self._most:
            return await refusal(self._too_large())(scope, receive, send)
        read, complete, answered = 0, False, False
        failure: ForewordError | None = None

        async def bounded() -> Message:
            nonlocal read, complete, failure
            if complete:  # from here on it only says that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except TimeoutError:
                failure = AnswerTimeout(f"no part of the body came for {BODY_SECONDS:g} s; send it faster.")
                raise failure from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self._most:
                failure = self._too_large()
                raise failure
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            if failure is None:
                answered = True
                await send(message)

        try:
            await self._app(scope, bounded, watched)
        except ForewordError as error:
            if error is not failure:
                raise
        # Whoever parses bodies makes an answer of its own of what it cannot read.
        if failure is not None and not answered:
            await refusal(failure)(scope, receive, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._most:,} bytes; send less at once.")
