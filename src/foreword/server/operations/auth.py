"""API keys over HTTP: `AuthMiddleware` refuses unknown keys, `CurrentCaller` is a route's `Caller` of the request."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from fastapi import Request as HttpRequest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from foreword.core.json_reader import parse_json, read_document
from foreword.engine.protocol import Sender
from foreword.errors import AccessError, Forbidden
from foreword.server.operations.api_keys import ApiKeys
from foreword.server.operations.error_handlers import error_response
from foreword.server.operations.page_sharing import PageSharing, share_within_tenant
from foreword.server.operations.rate_limits import RateLimiter, Reservation

PUBLIC_PATHS = ("/health",)
"""Paths that need no key."""
COUNTED_PATHS = "/v1/"
"""Requests to paths that begin so count against a key's limit, whatever becomes of them; parts of the page do not."""


class Caller:
    """The authenticated sender of a request: which tasks it may use, and its rate limits.

    Args:
        limiter: with the key; ``None`` where no keys are configured, and every request may do everything.
        share_pages: with whose requests its own may share pages.
    """

    def __init__(self, limiter: RateLimiter | None = None, share_pages: PageSharing = share_within_tenant) -> None:
        self._limiter = limiter
        self._share_pages = share_pages

    @property
    def name(self) -> str | None:
        """Name of the key."""
        return self._limiter.key.name if self._limiter is not None else None

    def sender(self, cache_salt: str | None = None) -> Sender:
        """As the engine knows it: every key is a tenant.

        Args:
            cache_salt: of the request, which shares pages with those of equal salt alone.
        """
        tenant = self.name or ""
        return Sender(tenant, self._share_pages(tenant, cache_salt or ""))

    @property
    def is_admin(self) -> bool:
        return self._limiter is None or self._limiter.key.admin

    def can_access(self, task: str) -> bool:
        """Whether it may use ``task``, the name of a task or of the base model."""
        return self._limiter is None or self._limiter.key.can_access(task)

    def check_access(self, task: str) -> None:
        """Raise Forbidden for a task that it may not use, whether or not there is one."""
        if not self.can_access(task):
            raise Forbidden(f"the key '{self.name}' does not reach '{task}'; ask for another key.")

    def count_request(self) -> None:
        """Count one request against its limits. Raises LimitReached."""
        if self._limiter is not None:
            self._limiter.count_request()

    def count_answers(self, answers: int) -> None:
        """Count a request, counted as one already, as the answers that it asks for. Raises LimitReached."""
        if self._limiter is not None:
            self._limiter.check_tokens()
            self._limiter.count_answers(answers)

    def count_tokens(self, tokens: int) -> None:
        """Count tokens that are about to be run. Raises LimitReached."""
        if self._limiter is not None:
            self._limiter.count_tokens(tokens)

    def reserve_tokens(self, tokens: int) -> Reservation | None:
        """Set aside the most tokens that a request may take; ``None`` without limits. Raises LimitReached."""
        return self._limiter.reserve(tokens) if self._limiter is not None else None


ADMINISTRATOR = Caller()
"""Who may do everything."""


class Authenticator:
    """Finds the `Caller` of a request by its key, and keeps a rate limiter for every key.

    Args:
        keys: of the server.
        usage_file: JSON file of the tokens that keys with a quota have used today, so that a restart forgets none.
        share_pages: see `Caller`.
    """

    def __init__(
        self, keys: ApiKeys, usage_file: Path | None = None, share_pages: PageSharing = share_within_tenant
    ) -> None:
        self.keys = keys
        self._share_pages = share_pages
        self._usage_file = usage_file
        used = _read_usage(usage_file)
        self._limiters = {key.sha256: RateLimiter(key, **used.get(key.name, {})) for key in keys}

    def authenticate(self, headers: Headers) -> Caller:
        """The caller whose key is in the headers. Raises AccessError without a key that is known."""
        if not self.keys:
            return Caller(share_pages=self._share_pages)
        secret = _secret_in(headers.get("authorization", "")) or headers.get("api-key") or headers.get("x-api-key")
        if not secret:
            raise AccessError("there is no API key; send it as Authorization: Bearer KEY.")
        key = self.keys.find(secret)
        if key is None:
            raise AccessError("the API key is not known; check it, or ask for another.")
        return Caller(self._limiters[key.sha256], self._share_pages)

    def save_usage(self) -> None:
        """Write the usage file, atomically, if any key has a quota."""
        with_quota = [each for each in self._limiters.values() if each.key.tokens_per_day is not None]
        if self._usage_file is None or not with_quota:
            return
        usage = {each.key.name: {"day": each.day, "used": each.used} for each in with_quota}
        temporary = self._usage_file.with_name(f"{self._usage_file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(usage), encoding="utf-8")
        os.replace(temporary, self._usage_file)


class AuthMiddleware:
    """ASGI middleware: answers 401 to a request without a known key and 429 to one of a key that has reached its limit
    of requests, before the body is read, and keeps its `Caller` in ``request.state``."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            public = scope["path"] in PUBLIC_PATHS
            try:
                caller = Caller() if public else self._authenticator.authenticate(Headers(scope=scope))
                scope.setdefault("state", {})["caller"] = caller
                if scope["path"].startswith(COUNTED_PATHS):
                    caller.count_request()
            except AccessError as error:
                return await error_response(error)(scope, receive, send)
        elif scope["type"] == "websocket" and self._authenticator.keys:
            try:
                self._authenticator.authenticate(Headers(scope=scope))
            except AccessError:
                return await send({"type": "websocket.close", "code": 1008})
        await self._app(scope, receive, send)


def current_caller(http: HttpRequest) -> Caller:
    """The caller of a request; a dependency of routes."""
    return http.state.caller


CurrentCaller = Annotated[Caller, Depends(current_caller)]


def require_admin(caller: CurrentCaller) -> None:
    """Raise Forbidden for a key that is no administrator's; a dependency of routes."""
    if not caller.is_admin:
        raise Forbidden(f"the key '{caller.name}' is no administrator's; ask for one with admin set.")


def _secret_in(header: str) -> str | None:
    """The secret in an Authorization header: a bearer token, or the password that a browser sends."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _read_usage(file: Path | None) -> Mapping[str, Mapping[str, Any]]:
    if file is None or not file.is_file():
        return {}
    try:
        found = parse_json(read_document(file))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
