"""`GracefulServer`: uvicorn's server, which gives answers on their way some seconds when it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

# Seconds that answers which were ended have to reach their clients, before connections are cut.
LAST_WORDS = 5


class GracefulServer(uvicorn.Server):
    """A server whose answers end properly: by themselves, or as cancelled.

    Args:
        app: the application.
        seconds: that answers have to finish once the server is told to stop.
        end_answers: ends those that have not; it may block.
    """

    def __init__(self, app: object, seconds: float, end_answers: Callable[[], None]) -> None:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=round(seconds + LAST_WORDS))  # type: ignore[arg-type] - any ASGI application
        super().__init__(config)
        self._seconds, self._end_answers = seconds, end_answers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._seconds, lambda: loop.run_in_executor(None, self._end_answers))
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
