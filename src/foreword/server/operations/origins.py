"""`OriginGuard`: pages of other sites can neither change anything nor read anything through a visitor's browser.

A browser sends what any page tells it to. A POST of plain text or of a form goes out without asking the server first,
and a page whose own name is made to point here (DNS rebinding) may read the answers, too. Programs send none of the
headers that tell where a request comes from, and pass.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.errors import Forbidden, ForewordError, UnknownHost
from foreword.server.operations.error_handlers import error_response

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing; of RFC 9110."""
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::(\d{0,5}))?")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class KnownHosts:
    """Names by which clients may ask for this server: addresses, names without a dot, ``*.localhost``, and patterns.

    An address cannot be made to point elsewhere, and a name without a dot is in no public DNS.

    Attributes:
        patterns: further names, lower case: ``api.example.com``, ``*.example.com``, ``*``.
    """

    patterns: Sequence[str] = ()

    @classmethod
    def of_server(cls, address: str, allowed: Sequence[str] = ()) -> KnownHosts:
        """Those of a server that listens on an address, and what its operator allows.

        One that more than this machine can reach is asked by names of its network, which are in no public DNS either.
        """
        ip = _ip_address(address)
        is_loopback = ip.is_loopback if ip is not None else address == "localhost"
        of_network = () if is_loopback else ("*.local", "*.internal")
        return cls(tuple(name.lower() for name in (*allowed, address, *of_network)))

    def __contains__(self, name: str) -> bool:
        """Whether a name, without its port, is one of them."""
        name = name.lower().removesuffix(".")
        if "." not in name or name.endswith(".localhost") or _ip_address(name) is not None:
            return True
        return any(_matches(pattern, name) for pattern in self.patterns)


LOCAL_HOSTS = KnownHosts()


class OriginGuard:
    """ASGI middleware: refuses by name what only another site's page would have a browser send.

    - 421 for a host that is not known.
    - 403 for a method that is not safe, from a page of another origin than this server's or an allowed one.

    Pages of other origins cannot show this server's in a frame, either.

    Args:
        known_hosts: names of this server.
        allowed_origins: of other pages that may ask; ``*`` for all.
    """

    def __init__(self, app: ASGIApp, known_hosts: KnownHosts, allowed_origins: Collection[str] = ()) -> None:
        self._app, self._known_hosts, self._allowed_origins = app, known_hosts, frozenset(allowed_origins)
        self._ancestors = f"frame-ancestors 'self' {' '.join(sorted(self._allowed_origins))}".rstrip()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        try:
            self._check(scope)
        except ForewordError as error:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await error_response(error)(scope, receive, send)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.append("Content-Security-Policy", self._ancestors)
            await send(message)

        await self._app(scope, receive, send_with_policy)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        for host in headers.getlist("host"):
            self._check_host(host)
        if scope.get("method") in SAFE_METHODS:
            return
        scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
        if is_cross_origin(headers, scheme, self._allowed_origins):
            raise Forbidden(
                "a page of another origin sent this; ask from this server's own, or start it with --cors-origin and "
                "that page's origin (behind a proxy: let it pass on the Host header, too)."
            )

    def _check_host(self, host: str) -> None:
        found = _HOST.fullmatch(host.lower())
        if found is None or (found[1] or found[2]) not in self._known_hosts:
            name = found[2][:253] if found is not None and found[2] else "NAME"
            raise UnknownHost(
                f"this server does not know itself as {host[:260]!r}; start it with --allowed-host {name}."
            )


def is_cross_origin(headers: Headers, scheme: str, allowed: Collection[str] = ()) -> bool:
    """Whether a page of another origin had a browser send a request.

    Browsers say so in headers that no page can set. ``Sec-Fetch-Site`` goes to https and this machine alone, so
    elsewhere ``Origin`` (of a browser that leaves that out: ``Referer``) is compared with what it was sent to.

    Args:
        scheme: of the request, ``http`` or ``https``.
        allowed: origins that may; ``*`` for all.
    """
    origin = headers.get("origin")
    if "*" in allowed or origin in allowed:
        return False
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    source = origin if origin is not None else headers.get("referer")
    return source is not None and _origin(source) != _origin(f"{scheme}://{headers.get('host', '')}")


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port of a URL; ``None`` for what is none, such as ``null``, and never equal to another's."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None


def _matches(pattern: str, name: str) -> bool:
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def _ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
