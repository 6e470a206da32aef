"""`ClientConnection`: notices a client that goes away before its response is complete."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Send

CLIENT_CLOSED_REQUEST = 499
"""The status that is logged and counted for such a request, as nginx and vLLM do; nobody is there to receive it."""


class ClientConnection:
    """``receive`` and ``send`` of one HTTP request, watched from the end of its body on.

    A route that only computes reads nothing more, so it would not notice; here every route does. What is computed for a
    client that has gone is stopped by the route, by reading on.

    Attributes:
        disconnected: the client went away before all of the response was sent.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._complete = False
        self._watcher: asyncio.Task[Message] | None = None
        self.disconnected = False

    async def receive(self) -> Message:
        """The next message of the client; behind the body, the one that says that it is gone."""
        if self._watcher is not None:
            return await asyncio.shield(self._watcher)
        message = await self._next_message()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._watcher = asyncio.create_task(self._next_message())
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True  # first: the server calls the end of a response a disconnect, too
        await self._send(message)

    def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _next_message(self) -> Message:
        message = await self._receive()
        self.disconnected |= message["type"] == "http.disconnect" and not self._complete
        return message
