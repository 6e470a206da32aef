"""Exception handlers: every failure as a body in OpenAI's error shape, one clear sentence and never a traceback."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from foreword.errors import ForewordError, ModelMismatch, UnknownTask

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "One sentence: what is wrong, and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}

_DESCRIPTIONS = {
    400: "The request is wrong; the sentence says where.",
    401: "There is no key, or one that is not known.",
    403: "The key does not reach so far.",
    404: "There is no such model, task, version or path.",
    405: "Another method is meant.",
    408: "The body came too slowly.",
    409: "The task belongs to another model, or the name is taken.",
    413: "The body is too large.",
    415: "The body is neither JSON nor an upload.",
    421: "The server does not know itself by this host; --allowed-host names it.",
    422: "Never sent: what cannot be read is 400.",
    429: "Too many requests or tokens; Retry-After says when to come again.",
    431: "The request's line and headers are too large.",
    500: "Something went wrong inside; the log says more.",
    503: "The engine does not answer any more.",
    504: "The answer took longer than allowed.",
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    for status, text in _DESCRIPTIONS.items()
}
"""The ``responses`` of every route besides its own, for the OpenAPI page."""


def install_error_handlers(app: FastAPI) -> None:
    """Register handlers for every exception that leaves a route."""

    @app.exception_handler(ForewordError)
    async def foreword_error(request: Request, error: ForewordError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return _json_response(400, _validation_body(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return _json_response(error.status_code, _http_error_body(request, error), error.headers)

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        # Starlette raises it again behind this answer, so that uvicorn logs the traceback.
        return _json_response(500, error_body(error))


def error_response(error: ForewordError) -> Response:
    """The response to a request that cannot be served."""
    headers = {}
    if isinstance(error, ModelMismatch):
        # Clients retry a 409 by themselves, and no retry turns a task into one of this model.
        headers["x-should-retry"] = "false"
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    response = _json_response(error.http_status, error_body(error), headers)
    if error.http_status == 401:
        # A browser asks for the key in a window of its own: any user name, the key as password. Chromium takes a
        # header for one challenge, whatever commas are in it, so each has its own.
        response.headers.append("WWW-Authenticate", "Bearer")
        response.headers.append("WWW-Authenticate", 'Basic realm="Foreword", charset="UTF-8"')
    return response


def error_body(error: Exception) -> dict[str, Any]:
    """``{"error": {...}}`` for an exception; an unexpected one tells nothing of the server's inside."""
    if not isinstance(error, ForewordError):
        return _body("the server met an unexpected error; its log says more.", 500, "internal_error")
    param = "model" if isinstance(error, UnknownTask | ModelMismatch) else getattr(error, "param", None)
    return _body(str(error), error.http_status, error.code, param)


def _body(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _json_response(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    # Escaped to ASCII: a message may repeat half of a surrogate pair, which UTF-8 cannot carry.
    content = json.dumps(body)
    return Response(content, status, dict(headers or {}), media_type="application/json")


def _validation_body(errors: Sequence[Any]) -> dict[str, Any]:
    """The first of pydantic's errors in one sentence."""
    first = errors[0]
    kind, message = str(first["type"]), str(first["msg"])
    if kind == "json_invalid":
        return _body("the body is not valid JSON; send one JSON object.", 400, "invalid_json")
    param = _param_path(first["loc"][1:])
    if param is None and kind not in ("invalid_value", "unsupported_parameter"):
        sentence = "send one JSON object with the header Content-Type: application/json."
        return _body(f"the body is missing or not an object; {sentence}", 400, "invalid_value")
    if kind == "extra_forbidden":
        return _body(f"{param} is not supported; leave it out.", 400, "unsupported_parameter", param)
    code = kind if kind == "unsupported_parameter" else "invalid_value"
    return _body(_sentence(param, kind, message), 400, code, param)


def _param_path(loc: Sequence[str | int]) -> str | None:
    """``("messages", 0, "role")`` as ``messages[0].role``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".") or None


def _sentence(param: str | None, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{param} is missing; send it."
    text = message.replace("Input should be", "must be", 1)
    text = text if text.startswith(("must", "is ")) else f"is wrong: {text[:1].lower()}{text[1:]}"
    return f"{param or 'the body'} {text.rstrip('.')}."


def _http_error_body(request: Request, error: HTTPException) -> dict[str, Any]:
    route = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return _body(f"there is no {route}; GET /openapi.json lists what there is.", 404, "not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _body(f"{route} is not allowed; use {allowed}.", 405, "method_not_allowed")
    return _body(f"{route} failed: {error.detail}", error.status_code, "http_error")
