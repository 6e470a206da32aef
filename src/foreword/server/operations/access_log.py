"""`AccessLog`: one JSON line a request, with its request id and without its content."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.server.operations.metrics import Metrics

LOGGER = logging.getLogger("foreword.requests")
HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class AccessLog:
    """ASGI middleware: numbers requests, counts responses and writes a line for each when it is over.

    Handlers add to ``scope["state"]["note"]``; prompts and answers never go there.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        note: dict[str, Any] = {}
        scope.setdefault("state", {})["note"] = note
        began, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            # Without a status the client was gone before there was an answer.
            self._metrics.response(_route(scope), status)
            caller = scope["state"].get("caller")
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status or None,
                "seconds": round(time.perf_counter() - began, 4),
                "key": caller.name if caller is not None else None,
                **note,
            }
            LOGGER.info("%s", json.dumps({name: value for name, value in line.items() if value is not None}))


def _route(scope: Scope) -> str:
    """The pattern of the path, ``/v1/tasks/{name}``; whatever matches none is one."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unknown"
