"""`AuthMiddleware`: every request shows a key, once there are keys; what it may do goes with the request."""

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

from foreword.errors import AccessError, Forbidden
from foreword.server.operations.api_keys import ApiKeys
from foreword.server.operations.error_handlers import refusal
from foreword.server.operations.rate_limits import RateLimiter

OPEN = ("/health",)
"""Paths that need no key."""


class Caller:
    """Who asks.

    Args:
        allowance: of its key; ``None`` where no keys are configured, and everybody may do everything.
    """

    def __init__(self, allowance: RateLimiter | None = None) -> None:
        self._allowance = allowance

    @property
    def name(self) -> str | None:
        return self._allowance.key.name if self._allowance is not None else None

    @property
    def admin(self) -> bool:
        return self._allowance is None or self._allowance.key.admin

    def reaches(self, task: str) -> bool:
        """Whether it may ask a task, or the base model, of that name."""
        return self._allowance is None or self._allowance.key.reaches(task)

    def check(self, task: str) -> None:
        """Raise Forbidden for a task that it may not ask, whether or not there is one."""
        if not self.reaches(task):
            raise Forbidden(f"the key '{self.name}' does not reach '{task}'; ask for another key.")

    def admit(self) -> None:
        """Count one request to the model. Raises LimitReached."""
        if self._allowance is not None:
            self._allowance.admit()

    def charge(self, tokens: int) -> None:
        """Take off tokens of a request, prompt and answer."""
        if self._allowance is not None:
            self._allowance.charge(tokens)


class Authenticator:
    """All keys, and what has been used of their quotas.

    Args:
        ring: the keys.
        ledger: file that remembers what was used today over a restart, if any key has a quota.
    """

    def __init__(self, ring: ApiKeys, ledger: Path | None = None) -> None:
        self.ring = ring
        self._ledger = ledger
        used = _read(ledger)
        self._allowances = {key.sha256: RateLimiter(key, **used.get(key.name, {})) for key in ring}

    def caller(self, headers: Headers) -> Caller:
        """Who sends these headers. Raises AccessError for nobody that is known."""
        if not self.ring:
            return Caller()
        secret = _secret(headers.get("authorization", "")) or headers.get("api-key") or headers.get("x-api-key")
        if not secret:
            raise AccessError("there is no API key; send it as Authorization: Bearer KEY.")
        key = self.ring.find(secret)
        if key is None:
            raise AccessError("the API key is not known; check it, or ask for another.")
        return Caller(self._allowances[key.sha256])

    def save(self) -> None:
        """Write down what was used of quotas."""
        if self._ledger is None:
            return
        bounded = [each for each in self._allowances.values() if each.key.tokens_per_day is not None]
        found = {each.key.name: {"day": each.day, "used": each.used} for each in bounded}
        if not found:
            return
        temporary = self._ledger.with_name(f"{self._ledger.name}.{os.getpid()}")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        os.replace(temporary, self._ledger)


class AuthMiddleware:
    """ASGI middleware: lets nobody through without a key that is known."""

    def __init__(self, app: ASGIApp, gate: Authenticator) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            open_ = scope["path"] in OPEN
            try:
                caller = Caller() if open_ else self._gate.caller(Headers(scope=scope))
            except AccessError as error:
                return await refusal(error)(scope, receive, send)
            scope.setdefault("state", {})["caller"] = caller
        elif scope["type"] == "websocket" and self._gate.ring:
            try:
                self._gate.caller(Headers(scope=scope))
            except AccessError:
                return await send({"type": "websocket.close", "code": 1008})
        await self._app(scope, receive, send)


def caller_of(http: HttpRequest) -> Caller:
    """Who asks; a dependency of routes."""
    return http.state.caller


Asking = Annotated[Caller, Depends(caller_of)]


def administrator(caller: Asking) -> None:
    """Let only administrators through; a dependency of routes. Raises Forbidden."""
    if not caller.admin:
        raise Forbidden(f"the key '{caller.name}' is no administrator's; ask for one with admin set.")


def _secret(header: str) -> str | None:
    """The key in an Authorization header: a bearer token, or the password that a browser sends."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _read(ledger: Path | None) -> Mapping[str, Mapping[str, Any]]:
    if ledger is None or not ledger.is_file():
        return {}
    try:
        found = json.loads(ledger.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
