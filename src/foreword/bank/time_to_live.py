"""How long a task lives without being used: parsing of durations, and when a version expires."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from foreword.errors import CorruptFile, UsageError

USED = "used"
"""The file beside ``current`` that holds when a task was last used."""

GRANULARITY = 20
"""A use is recorded when the one before is older than this part of the time to live, which is granted on top."""

MAX_SECONDS = 10**10
"""Bound of a time to live, about 300 years: calendars end in the year 9999."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw]?)")


def parse_duration(text: str) -> int:
    """Seconds of ``90``, ``90s``, ``15m``, ``12h``, ``7d`` or ``2w``. Raises UsageError for anything else, for 0
    and for more than `MAX_SECONDS`."""
    found = _DURATION.fullmatch(text.strip())
    seconds = int(found[1]) * _UNITS[found[2] or "s"] if found else 0
    if seconds > MAX_SECONDS:
        raise UsageError(f"a time to live is at most 300 years, found {text[:40]!r}; leave it out for one without end.")
    if not seconds:
        raise UsageError(f"a time to live is a number above 0 with s, m, h, d or w, such as 7d, found {text[:40]!r}.")
    return seconds


def format_duration(seconds: int) -> str:
    """The shortest text that `parse_duration` reads back, such as ``7d``."""
    unit = next(unit for unit, length in reversed(_UNITS.items()) if seconds % length == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def format_time(seconds: float) -> str:
    """A time in UTC, such as ``2026-01-31T09:30:00Z``, from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> float:
    """Seconds since 1970 of a time in UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time.timestamp()


def last_use(record: Mapping[str, Any], used: bytes | None, where: str) -> float:
    """When a version was made or its task used, whatever is later, in seconds since 1970.

    Args:
        record: its ``task.json``.
        used: the content of the task's ``used``, if there is one.
        where: that file, for errors.

    Raises CorruptFile for a ``used`` that holds no time.
    """
    created = parse_time(record["created"])
    if used is None:
        return created
    text = used.decode(errors="replace").strip()
    try:
        return max(created, parse_time(text))
    except ValueError:
        raise CorruptFile(
            f"{where}: expected a time such as 2026-01-31T09:30:00Z, found {text[:40]!r}; delete it."
        ) from None


def expiry(ttl: int, used_at: float) -> float:
    """When a task whose last recorded use was at ``used_at`` expires, in seconds since 1970."""
    return used_at + ttl + ttl / GRANULARITY
