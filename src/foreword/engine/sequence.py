"""`Sequence`: one request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from foreword.core import KVPrefix
from foreword.engine.protocol import Request


@dataclass(eq=False)
class Sequence:
    """State of one request; its scheduler owns it, the runner only reads.

    Attributes:
        id: unique within the engine.
        request: what was asked.
        prefix: the used part of the request's prefix, in the model's dtype and on its device; shared, never copied.
        generator: source of random numbers, ``None`` if greedy.
        computed: how many of ``tokens`` have keys and values in the cache.
        pages: pages that hold them, in order.
        generated: tokens chosen so far.
    """

    id: int
    request: Request
    prefix: KVPrefix | None
    generator: torch.Generator | None
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    cancelled: bool = False

    @property
    def length(self) -> int:
        """Own tokens, asked and generated."""
        return len(self.request.token_ids) + len(self.generated)

    @property
    def limit(self) -> int:
        """Own tokens it may ever need room for; the last one chosen is never run."""
        return len(self.request.token_ids) + self.request.sampling.max_tokens - 1

    def tokens(self, start: int, end: int) -> list[int]:
        """Own tokens ``start..end``."""
        asked = self.request.token_ids
        if start >= len(asked):
            return self.generated[start - len(asked) : end - len(asked)]
        return [*asked[start:end], *self.generated[: max(0, end - len(asked))]]
