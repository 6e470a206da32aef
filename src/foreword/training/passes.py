"""Passes: how much goes through the model at once when many runs share a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# Tokens that share a forward at most, unless a single one has more. More are no faster and hold more memory.
TOKENS = 1024


def passes(items: Sequence[tuple[T, int]], tokens: int = TOKENS) -> Iterator[list[T]]:
    """Items with their sizes in tokens, in their order, as many at a time as fit."""
    chosen: list[T] = []
    used = 0
    for item, size in items:
        if chosen and used + size > tokens:
            yield chosen
            chosen, used = [], 0
        chosen.append(item)
        used += size
    if chosen:
        yield chosen
