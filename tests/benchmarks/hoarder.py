"""A participant that takes memory when it is asked to."""

from __future__ import annotations

from typing import Any

from benchmarks.memory import PeakMemory

_held: list[bytes] = []


def start(settings: dict[str, Any]) -> dict[str, Any]:
    return {"grow": _grow, "memory": PeakMemory()}


def _grow(megabytes: int) -> None:
    _held.append(b"x" * (megabytes << 20))
