"""`GracefulServer`: uvicorn's server, which gives answers on their way some seconds when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from foreword.server.operations.connections import DEFAULT_LIMITS, ConnectionLimits, server_config

LAST_WORDS = 2.0
"""Seconds of the grace, a fifth of it at most, that answers which were ended have to reach their clients."""
TIME_TO_EXIT = 3.0
"""Seconds behind the grace after which the process ends, whatever still runs in its threads."""
LOGGER = logging.getLogger(__name__)


class GracefulServer(uvicorn.Server):
    """A server whose answers end properly: by themselves, or as cancelled. A second signal ends it at once.

    Args:
        app: the application.
        grace: seconds from the signal to the end of the last connection.
        end_answers: ends those answers that are not complete then; it may block.
        limits: of connections.
    """

    def __init__(
        self,
        app: object,
        grace: float,
        end_answers: Callable[[], None],
        limits: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(server_config(app, limits, timeout_graceful_shutdown=grace + 1))
        self._grace, self._end_answers = grace, end_answers
        # A handler that is cancelled at the end is no error of its.
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        _exit_in(TIME_TO_EXIT if self.should_exit else self._grace + TIME_TO_EXIT)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        end = max(0.0, self._grace - min(LAST_WORDS, self._grace / 5))
        timers = [
            loop.call_later(end, lambda: loop.run_in_executor(None, self._end_answers)),
            loop.call_later(self._grace, self._cut_connections),
        ]
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # which uvicorn takes for leave to forget what the application has to save
                await self.lifespan.shutdown()
        finally:
            for timer in timers:
                timer.cancel()

    def _cut_connections(self) -> None:
        """End what no answer ends: clients that do not read, and streams of the page without an end."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _exit_in(seconds: float) -> None:
    """End this process after that time, unless it has ended by itself."""
    timer = threading.Timer(seconds, _exit)
    timer.daemon = True
    timer.start()


def _exit() -> None:
    LOGGER.warning("the server ends now; what its threads still did is given up.")
    os._exit(0)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)
