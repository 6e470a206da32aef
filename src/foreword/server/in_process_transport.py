"""`InProcessTransport`: httpx requests to an ASGI application of this process, without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
from starlette.types import ASGIApp, Message, Scope


class InProcessTransport(httpx.AsyncBaseTransport):
    """An httpx transport that calls an ASGI application; its middleware, keys and limits hold as for any other client.

    httpx's own ``ASGITransport`` waits for the whole body; this one yields the parts of a stream as they are sent.

    Args:
        app: gets the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _Exchange(self._app, _scope(request), await request.aread())
        status, headers = await exchange.response_start()
        return httpx.Response(status, headers=headers, stream=exchange)


class _Exchange(httpx.AsyncByteStream):
    """One request and its response: the application runs in an asyncio task, which closing the stream cancels."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._request_messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._response_messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._running = asyncio.create_task(self._run(app, scope))

    async def response_start(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers. Raises httpx.ReadError if the application ends without a response."""
        message = await self._response_messages.get()
        if message is None:
            raise httpx.ReadError("the application ended without an answer.")
        return message["status"], list(message.get("headers", ()))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more and (message := await self._response_messages.get()) is not None:
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        # As when a client disconnects: the application frees what it holds for this response.
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._response_messages.put)
        except Exception:  # the application has responded 500 already
            logging.getLogger(__name__).exception("a request inside the process failed")
        finally:
            self._response_messages.put_nowait(None)

    async def _receive(self) -> Message:
        if self._request_messages:
            return self._request_messages.pop()
        await asyncio.Event().wait()  # nothing more comes; `aclose` cancels this
        raise AssertionError


def _scope(request: httpx.Request) -> Scope:
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "server": (url.host, url.port),
        "client": ("127.0.0.1", 0),
    }
