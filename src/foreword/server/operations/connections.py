"""`BoundedProtocol`: connections that can neither be held open for nothing nor cost more than they carry.

uvicorn takes a head of any size in any time, joins its parts anew with each one (quadratic), and waits for ever for a
client that is silent or does not read. `server_config` is what `GracefulServer` and `serve_in_background` run with.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foreword.errors import ForewordError, HeadTooLarge, RequestError, RequestTimeout, TooManyConnections
from foreword.server.operations.error_handlers import error_body

MAX_HEAD_BYTES = 64 << 10
"""Bound of a request's line and headers together; and of what a body has besides its bytes (sizes of chunks, their
extensions, trailers), which may further be as long as the body itself."""
MAX_HEADERS = 256
MAX_PIPELINED = 16
"""Requests of one connection that may wait for the answer to one before them."""
MIN_BYTES_READ = 16 << 10
"""What a client must have read of its answer in each `ConnectionLimits.timeout_write`."""
MAX_BYTES_IGNORED = 64 << 20
"""What a client may still send after its request was answered or refused, so that it sees the answer and no reset."""
TIME_AFTER_ANSWER = 30.0
"""Seconds in which it must have sent that."""
TIME_AFTER_REFUSAL = 2.0
"""The same of a request that broke the rules of HTTP or of this file."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of connections; times in seconds.

    Attributes:
        max_connections: open at once. One more closes that which has waited longest for a request; where every other
            is being answered it is refused with 503.
        timeout_head: from the opening of a connection, or the first byte of a later request, to the end of its head.
        timeout_keep_alive: how long a connection may be idle between two requests.
        timeout_write: how long a client may read nothing of its answer.
    """

    max_connections: int = 2048
    timeout_head: float = 10.0
    timeout_keep_alive: float = 5.0
    timeout_write: float = 30.0

    @property
    def check_interval(self) -> float:
        """How often a connection looks at its clock."""
        return min(1.0, self.timeout_head / 4, self.timeout_write / 4)


DEFAULT_LIMITS = ConnectionLimits()


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        limits: of this one and all others.
        idle: the server's connections that have no request, the longest idle first.
    """

    def __init__(self, *, limits: ConnectionLimits, idle: dict[BoundedProtocol, None], **of_server: Any) -> None:
        super().__init__(**of_server)
        self._limits, self._idle = limits, idle
        self._deadline: float | None = None  # for the head, or for the rest of what was answered before its end
        self._in_body = self._refused = False
        self._framing = 0  # bytes since a head or request was complete, less two for each byte of a body
        self._ignored = 0
        self._error: ForewordError | None = None
        self._unread, self._unread_since = 0, 0.0
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] - as uvicorn's own
        super().connection_made(transport)
        self._check_clock()
        if len(self.connections) > self._limits.max_connections and not self._close_longest_idle():
            return self._refuse(TooManyConnections("too many connections are open; ask again in a while."))
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # In parts that end where the head has to end, since the parser takes whatever it is given.
        view = memoryview(data)
        while view and not self.transport.is_closing():
            if self._refused:
                return self._ignore(len(view))
            if (room := MAX_HEAD_BYTES - self._framing) <= 0:
                return self._refuse(_HEAD_TOO_LARGE)
            part, view = view[:room], view[room:]
            self._framing += len(part)
            super().data_received(part)  # type: ignore[arg-type] - the parser reads any buffer
            if self._framing and self._deadline is None and self._is_idle:
                self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer: what reads headers has read them
            return
        if len(self.headers) >= MAX_HEADERS:
            self._error = _HEAD_TOO_LARGE
            raise ValueError  # the parser stops, and `send_400_response` is called
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError
        self._framing, self._in_body, self._deadline = 0, True, None
        self._idle.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = max(0, self._framing - 2 * len(body))
        if self.cycle.response_complete:
            self._ignore(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._framing, self._in_body = 0, False
        super().on_message_complete()
        if self._is_idle:  # the answer was there before the end of the request
            self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete:
            self._deadline = self.loop.time() + TIME_AFTER_ANSWER
        elif self._framing and self._is_idle:  # a part of the next head came already
            self._unset_keepalive_if_required()
            self._wait_for_head()
        elif self._is_idle:  # with uvicorn's timer for the time between requests
            self._idle[self] = None

    def resume_writing(self) -> None:
        self._unread = 0
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._error or RequestError("the request is not valid HTTP/1.1; send one that is."))

    @property
    def _is_idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self._in_body and not self.pipeline

    def _wait_for_head(self) -> None:
        self._deadline, self._ignored = self.loop.time() + self._limits.timeout_head, 0
        self._idle[self] = None

    def _close_longest_idle(self) -> bool:
        """Make room for this connection. Returns whether there was an idle one."""
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        del self._idle[longest]
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    def _ignore(self, num_bytes: int) -> None:
        self._ignored += num_bytes
        if self._ignored > MAX_BYTES_IGNORED:
            self.transport.abort()

    def _check_clock(self) -> None:
        """Close the connection if its client is late with its head or its rest, or does not read."""
        now = self.loop.time()
        self._clock = self.loop.call_later(self._limits.check_interval, self._check_clock)
        unread = self.transport.get_write_buffer_size()
        if not unread or not self._unread or self._unread - unread >= MIN_BYTES_READ:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > self._limits.timeout_write:
            self.transport.abort()
        if self._deadline is None or now < self._deadline:
            return
        if self._refused or self._in_body:
            self.transport.abort()
        elif self._framing:
            limit = self._limits.timeout_head
            self._refuse(RequestTimeout(f"the head of a request did not come in {limit:g} s; send it at once."))
        else:
            self.transport.close()

    def _refuse(self, error: ForewordError) -> None:
        """Tell the client, and close the connection once it has ended its own side, or soon."""
        self._idle.pop(self, None)
        if self.cycle is not None and not self.cycle.response_complete:  # what is being answered has the word
            return self.transport.close()
        body = json.dumps(error_body(error)).encode()
        lines = [
            f"HTTP/1.1 {error.http_status} {HTTPStatus(error.http_status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        if error.retry_after is not None:
            lines.append(f"retry-after: {math.ceil(error.retry_after)}")
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._refused, self._deadline = True, self.loop.time() + TIME_AFTER_REFUSAL


_HEAD_TOO_LARGE = HeadTooLarge(
    f"a request's line and headers are larger than {MAX_HEAD_BYTES:,} bytes, or more than {MAX_HEADERS}; send fewer."
)


def server_config(
    app: object, limits: ConnectionLimits = DEFAULT_LIMITS, *, timeout_graceful_shutdown: float
) -> uvicorn.Config:
    """Of a server with bounded connections.

    Args:
        app: any ASGI application; there are no websockets.
        limits: of all its connections together.
        timeout_graceful_shutdown: seconds after which handlers are cancelled once the server is told to stop.
    """
    protocol = partial(BoundedProtocol, limits=limits, idle={})
    return uvicorn.Config(
        app,  # type: ignore[arg-type] - any ASGI application
        http=protocol,  # type: ignore[arg-type] - called as the class is
        ws="none",
        log_level="warning",
        timeout_keep_alive=limits.timeout_keep_alive,  # type: ignore[arg-type] - any number of seconds
        timeout_graceful_shutdown=math.ceil(timeout_graceful_shutdown),
    )
