"""`JsonBodyRoute`: a route whose JSON body is read within bounds, before the route sees it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from foreword.core.json_reader import InvalidJson, read_json
from foreword.errors import RequestError

MAX_ITEMS = 500_000
"""Values of one body: token ids for a batch of long texts."""
MAX_CONTAINERS = 1 << 16
"""Lists and objects among them, which take longer to read than the texts and numbers in them."""
_SMALL_BYTES = 1 << 16


class JsonBodyRoute(APIRoute):
    """Reads bodies by `read_json`, large ones in a thread, and refuses those of too many parts: reading 4 MiB of empty
    lists would stop every other request for a second.

    Raises RequestError in front of the route.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            if not _is_json(request.headers.get("content-type", "")) or not (data := await request.body()):
                return await handle(request)
            value = read_body(data) if len(data) <= _SMALL_BYTES else await run_in_threadpool(read_body, data)
            return await handle(_ReadRequest(request, data, value))

        return read_and_handle


class _ReadRequest(Request):
    """A request whose body was read.

    Args:
        request: the same, as it came.
        data: its body.
        value: that stands in it.
    """

    def __init__(self, request: Request, data: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._data, self._value = data, value

    async def body(self) -> bytes:
        return self._data

    async def json(self) -> Any:
        return self._value


def read_body(data: bytes) -> Any:
    """The value of a body. Raises RequestError for one beyond the bounds of `read_json` or of too many parts, and
    RequestValidationError for what is no JSON. Numbers that are none are for the route to refuse, which names them."""
    if len(data) > _SMALL_BYTES:
        _check_parts(data)
    try:
        return read_json(data, "the body", error=RequestError, mend="send one JSON object", constants=True)
    except RequestError as error:
        if isinstance(error.__cause__, InvalidJson) and error.__cause__.position is None:
            raise
        found = {"type": "json_invalid", "loc": ("body",), "msg": str(error), "input": {}}
        raise RequestValidationError([found]) from error


def _check_parts(data: bytes) -> None:
    commas, containers = data.count(b","), data.count(b"[") + data.count(b"{")
    if commas <= MAX_ITEMS and containers <= MAX_CONTAINERS:
        return
    if data.count(b'"') <= 2 * MAX_ITEMS:  # those within texts do not count
        outside = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
        commas, containers = outside.count(b","), outside.count(b"[") + outside.count(b"{")
    if commas > MAX_ITEMS or containers > MAX_CONTAINERS:
        raise RequestError(
            f"the body has {commas:,} values and {containers:,} lists and objects, at most {MAX_ITEMS:,} and "
            f"{MAX_CONTAINERS:,} are read; send less at once."
        )


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))
