"""Page sharing: whose requests may find each other's keys and values in the engine's cache, as a salt of its pages.

``cached_tokens`` and the time of an answer tell whether a text was asked before, so tenants share nothing by default.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

PageSharing = Callable[[str, str], str]
"""Makes `foreword.engine.protocol.Request.cache_salt` of a tenant and of the ``cache_salt`` in its request. Called once
for a request, whose prompts and choices share it."""


def share_with_all(tenant: str, cache_salt: str) -> str:
    return cache_salt


def share_within_tenant(tenant: str, cache_salt: str) -> str:
    """Equal for equal tenants with equal salts alone; a client's salt divides a tenant and never joins two."""
    return json.dumps([tenant, cache_salt]) if tenant or cache_salt else ""


def share_nothing(tenant: str, cache_salt: str) -> str:
    return secrets.token_hex(16)


SHARE_PAGES: dict[str, PageSharing] = {
    "all": share_with_all,
    "tenant": share_within_tenant,
    "none": share_nothing,
}
"""By the values of ``--share-pages``."""
