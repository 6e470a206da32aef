"""Heads, silent clients, clients that do not read, and too many of them, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from foreword.server.background import serve_in_background
from foreword.server.operations.connections import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, ConnectionLimits
from server.running_server import wait_until

LIMITS = ConnectionLimits(max_connections=8, timeout_head=0.6, timeout_keep_alive=0.4, timeout_write=0.8)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class App:
    """Answers with the body that it read; ``/endless`` is a stream without an end, ``/held`` waits to be released."""

    def __init__(self) -> None:
        self.running, self.seen, self.released = 0, 0, False

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        self.running += 1
        self.seen += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.running -= 1

    async def _answer(self, scope, receive, send) -> None:
        body, more = b"", scope["path"] != "/unread"
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        while scope["path"] == "/held" and not self.released:
            await asyncio.sleep(0.01)
        names = b",".join(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-names", names[:500])]})
        while scope["path"] == "/endless":
            listener = asyncio.create_task(receive())
            await send({"type": "http.response.body", "body": b"x" * (1 << 16), "more_body": True})
            await asyncio.sleep(0)
            if listener.done():
                return
            listener.cancel()
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def app() -> App:
    return App()


@pytest.fixture(scope="module")
def address(app: App) -> Iterator[tuple[str, int]]:
    with serve_in_background(app, limits=LIMITS) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with closing(socket.create_connection(address, timeout=10)) as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionError:
        pass
    return received


def status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


def test_a_head_of_64_kib_passes_and_a_larger_one_does_not(address, app):
    def head(size: int) -> bytes:
        frame = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nA: \r\n\r\n"
        return frame.replace(b"A: ", b"A: " + b"a" * (size - len(frame)))

    with connected(address) as connection:
        connection.sendall(head(MAX_HEAD_BYTES))
        assert status(answer(connection)) == 200
    seen = app.seen
    for size in (MAX_HEAD_BYTES + 1, 4 << 20):
        with connected(address) as connection:
            connection.sendall(head(size))
            received = answer(connection)
            assert status(received) == 431
            assert b'"code": "request_too_large"' in received
    with connected(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * MAX_HEADERS + b"\r\n")
        assert status(answer(connection)) == 431
    assert app.seen == seen


@pytest.mark.parametrize("endless", [b"1;" + b"e" * (1 << 17), b"1\r\na\r\n" * 40_000, b"0\r\n" + b"t: u\r\n" * 30_000])
def test_chunks_may_not_be_mostly_framing(address, endless):
    with connected(address) as connection:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        started = time.monotonic()
        with suppress(ConnectionError):
            connection.sendall(head + endless)
        answer(connection)
        assert time.monotonic() - started < 5


def test_small_chunks_and_trailers_are_read(address):
    with connected(address) as connection:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"1\r\na\r\n" * 3000 + b"10;x=y\r\n" + b"b" * 16 + b"\r\n0\r\n")
        connection.sendall(b"Authorization: Bearer other\r\n\r\n")
        received = answer(connection)
    assert b"x-names: host,connection,transfer-encoding\r\n" in received
    assert received.count(b"a", received.index(b"\r\n\r\n")) == 3000


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"\r\n", b"POST / HTTP/1.1\r\nHost: localhost\r\n", GET, GET + b"GET / HT"]
)
def test_silent_and_half_sent_connections_are_closed(address, sent):
    with connected(address) as connection:
        started = time.monotonic()
        connection.sendall(sent)
        received = answer(connection)
        assert time.monotonic() - started < 8
    assert received.count(b"HTTP/1.1 200") == sent.count(GET)
    assert received.count(b"HTTP/1.1 408") == (sent not in (b"", GET, GET + b"GET / HT"))  # beside an answer: closed


def test_a_head_that_trickles_is_closed(address):
    with connected(address) as connection:
        started = time.monotonic()
        with suppress(ConnectionError):
            for letter in b"GET /" + b"a" * 200:
                connection.sendall(bytes([letter]))
                time.sleep(0.1)
        assert time.monotonic() - started < 8


def test_a_client_that_does_not_read_is_given_up(address, app):
    with connected(address) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: app.running == 1)
        wait_until(lambda: app.running == 0)


def test_a_body_that_goes_on_behind_its_answer_is_read_and_the_connection_kept(address):
    with connected(address) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n")
        for _ in range(40):
            connection.sendall(b"x" * 100_000)
        connection.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert answer(connection).count(b"HTTP/1.1 200") == 2


def test_many_requests_at_once_on_one_connection_are_refused(address, app):
    seen = app.seen
    with connected(address) as connection:
        connection.sendall(GET * 5000)
        answer(connection)
    assert app.seen - seen <= MAX_PIPELINED + 2


def test_silent_connections_make_room_and_busy_ones_do_not(address, app):
    app.released = False
    silent = [socket.create_connection(address) for _ in range(3 * LIMITS.max_connections)]
    url = f"http://{address[0]}:{address[1]}/"
    assert httpx.get(url).status_code == 200
    for connection in silent:
        connection.close()
    busy = [socket.create_connection(address) for _ in range(LIMITS.max_connections)]
    for connection in busy:
        connection.sendall(GET.replace(b"/", b"/held", 1))
    wait_until(lambda: app.running == LIMITS.max_connections)
    with connected(address) as connection:
        received = answer(connection)
    assert status(received) == 503
    assert b"retry-after: 1\r\n" in received
    app.released = True
    assert [connection.recv(12) for connection in busy] == [b"HTTP/1.1 200"] * len(busy)
    for connection in busy:
        connection.close()
    assert httpx.get(url).status_code == 200
