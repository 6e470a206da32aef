"""`InProcessTransport`: bodies arrive part by part, and closing the response cancels the application."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from foreword.server.in_process_transport import InProcessTransport


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=InProcessTransport(app), base_url="http://inside")


def test_a_request_arrives_as_it_was_sent():
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
    app, first_received = FastAPI(), asyncio.Event()

    @app.get("/")
    async def pieces() -> StreamingResponse:
        async def body_parts():
            yield b"first"
            await first_received.wait()
            yield b"second"

        return StreamingResponse(body_parts())

    async def run() -> list[bytes]:
        parts = []
        async with client(app) as http, http.stream("GET", "/") as response:
            async for piece in response.aiter_raw():
                parts.append(piece)
                first_received.set()  # only now is there a second piece
        return parts

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [b"first", b"second"]


def test_disconnecting_cancels_the_application():
    app, ended = FastAPI(), []

    @app.get("/")
    async def endless() -> StreamingResponse:
        async def body_parts():
            try:
                while True:
                    yield b"more"
                    await asyncio.sleep(0)
            finally:
                ended.append(True)

        return StreamingResponse(body_parts())

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
