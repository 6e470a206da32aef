"""`ContentTypes`: requests that may change something have JSON for a body, or the file of an upload."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from foreword.errors import UnsupportedMediaType
from foreword.server.operations.error_handlers import error_response
from foreword.server.operations.origins import SAFE_METHODS

_JSON = re.compile(r"application/([\w.-]+\+)?json")


class ContentTypes:
    """ASGI middleware: answers 415 to what a form sends, which a browser sends for any page, and to a body of no type.

    Args:
        upload_paths: take multipart bodies, too.
    """

    def __init__(self, app: ASGIApp, upload_paths: Collection[str] = ()) -> None:
        self._app, self._upload_paths = app, frozenset(upload_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and not self._takes(scope):
            found = Headers(scope=scope).get("content-type", "no type")[:100]
            error = UnsupportedMediaType(
                f"the body is of {found!r}; send JSON with the header Content-Type: application/json "
                "(curl: -H 'Content-Type: application/json')."
            )
            return await error_response(error)(scope, receive, send)
        await self._app(scope, receive, send)

    def _takes(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind:
            return headers.get("content-length", "0").strip("0") == "" and "transfer-encoding" not in headers
        return bool(_JSON.fullmatch(kind)) or (kind == "multipart/form-data" and scope["path"] in self._upload_paths)
