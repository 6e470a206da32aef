"""A server in a thread of this process, for the demo, benchmarks and tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from foreword.errors import EngineError
from foreword.server.operations.connections import DEFAULT_LIMITS, ConnectionLimits, server_config


@contextmanager
def serve_in_background(app: Any, host: str = "127.0.0.1", limits: ConnectionLimits = DEFAULT_LIMITS) -> Iterator[str]:
    """Serve an ASGI app on a free port and yield its URL; the server stops when the block ends."""
    listener = socket.socket()
    listener.bind((host, 0))
    server = uvicorn.Server(server_config(app, limits, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        _wait_until_started(server, thread)
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise EngineError("the server did not start; look at its log above.")
        time.sleep(0.01)
