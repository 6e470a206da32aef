"""`InProcessTransport`: httpx requests to the application that this page is mounted on, without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
from starlette.types import ASGIApp, Message, Scope


class InProcessTransport(httpx.AsyncBaseTransport):
    """Calls an ASGI application, whose middleware, keys and limits hold as for any other client.

    httpx has an ``ASGITransport`` too, but it waits for the whole body, and answers here arrive token by token.

    Args:
        app: what is called.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _Call(self._app, _scope(request), await request.aread())
        status, headers = await call.opened()
        return httpx.Response(status, headers=headers, stream=call)


class _Call(httpx.AsyncByteStream):
    """One request on its way: the application runs in a task of its own, and closing ends that task."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self._running = asyncio.create_task(self._run(app, scope))

    async def opened(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers. Raises httpx.ReadError if the application ends without any."""
        message = await self._sent.get()
        if message is None:
            raise httpx.ReadError("the application ended without an answer.")
        return message["status"], list(message.get("headers", ()))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more and (message := await self._sent.get()) is not None:
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        # As when a client hangs up: the application frees whatever it holds for this answer.
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._sent.put)
        except Exception:  # the application has answered 500 already
            logging.getLogger(__name__).exception("a request from the page failed")
        finally:
            self._sent.put_nowait(None)

    async def _receive(self) -> Message:
        if self._unread:
            return self._unread.pop()
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
