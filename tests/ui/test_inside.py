"""Requests to the application itself: bodies arrive piece by piece, and hanging up ends the work."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from foreword.server.ui.in_process_transport import InProcessTransport


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=InProcessTransport(app), base_url="http://inside")


def test_it_asks_as_anybody_would():
    app = FastAPI()

    @app.post("/echo/{name}")
    async def echo(name: str, request: Request) -> dict[str, str | None]:
        body = (await request.body()).decode()
        return {"name": name, "q": request.query_params["q"], "key": request.headers["authorization"], "body": body}

    async def run() -> dict[str, str]:
        async with client(app) as http:
            asked = await http.post("/echo/a b", params={"q": "1&2"}, headers={"Authorization": "k"}, content="hi")
            return asked.json()

    assert asyncio.run(run()) == {"name": "a b", "q": "1&2", "key": "k", "body": "hi"}


def test_pieces_arrive_as_they_are_made():
    app, gate = FastAPI(), asyncio.Event()

    @app.get("/")
    async def pieces() -> StreamingResponse:
        async def made():
            yield b"first"
            await gate.wait()
            yield b"second"

        return StreamingResponse(made())

    async def run() -> list[bytes]:
        found = []
        async with client(app) as http, http.stream("GET", "/") as response:
            async for piece in response.aiter_raw():
                found.append(piece)
                gate.set()  # only now is there a second piece
        return found

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [b"first", b"second"]


def test_hanging_up_ends_the_work():
    app, ended = FastAPI(), []

    @app.get("/")
    async def endless() -> StreamingResponse:
        async def made():
            try:
                while True:
                    yield b"more"
                    await asyncio.sleep(0)
            finally:
                ended.append(True)

        return StreamingResponse(made())

    async def run() -> None:
        async with client(app) as http, http.stream("GET", "/") as response:
            async for _ in response.aiter_raw():
                break

    asyncio.run(asyncio.wait_for(run(), 5))
    assert ended == [True]


def test_an_application_that_fails_is_an_error():
    async def broken(scope, receive, send) -> None:
        raise RuntimeError("broken")

    async def run() -> None:
        async with httpx.AsyncClient(transport=InProcessTransport(broken), base_url="http://inside") as http:
            await http.get("/")

    with pytest.raises(httpx.ReadError, match="without an answer"):
        asyncio.run(run())
