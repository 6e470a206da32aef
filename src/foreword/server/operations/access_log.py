"""`AccessLog`: one JSON line for every request, with its request id and without its content."""

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

from foreword.server.operations.client_connection import CLIENT_CLOSED_REQUEST, ClientConnection
from foreword.server.operations.metrics import Metrics

LOGGER = logging.getLogger("foreword.requests")
HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class AccessLog:
    """ASGI middleware: gives every request an id, counts responses by status and logs a line when a request is over.

    Parts of the page (`parts_of_page`: first the page itself, then what begins like its parts) get a line only for an
    error. Handlers add fields of the line to ``request.state.log_fields``; prompts and answers never go there. They set
    ``request.state.split`` to the task and the version of a request that one of several versions answers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, parts_of_page: tuple[str, ...] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._parts_of_page = parts_of_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent_id = Headers(scope=scope).get(HEADER, "")
        request_id = sent_id if _ID.fullmatch(sent_id) else secrets.token_hex(16)
        log_fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log_fields"] = log_fields
        started, status = time.perf_counter(), 0
        connection = ClientConnection(receive, send)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await connection.send(message)

        try:
            await self._app(scope, connection.receive, send_with_id)
        finally:
            connection.close()
            if connection.disconnected:  # what the engine said of the answer that was cancelled is no error of its
                status = CLIENT_CLOSED_REQUEST
            self._metrics.count_response(_route_path(scope), status)
            if (split := scope["state"].get("split")) is not None:
                task, version = split
                self._metrics.count_version_response(task, version, status)
            caller = scope["state"].get("caller")
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status or None,
                "seconds": round(time.perf_counter() - started, 4),
                "key": caller.name if caller is not None else None,
                **log_fields,
            }
            if not self._is_part_of_page(scope["path"], status):
                LOGGER.info("%s", json.dumps({name: value for name, value in line.items() if value is not None}))

    def _is_part_of_page(self, path: str, status: int) -> bool:
        """Whether a request was for a part of the page, of which only the view itself and errors get a line."""
        return 0 < status < 400 and path.startswith(self._parts_of_page) and path not in self._parts_of_page[:1]


def _route_path(scope: Scope) -> str:
    """The path template of the route, as ``/v1/tasks/{name}``; "unknown" for a path that matches none."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unknown"
