"""`Sequence`: one request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np

from foreword.core import Adapter, KVPrefix
from foreword.engine.protocol import Request, TokenLogprob
from foreword.engine.stream import AnswerStream
from foreword.engine.token_sampler import TokenSampler
from foreword.text.detokenize import Detokenizer

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Sequence:
    """State of one request, touched only by the thread that steps the engine.

    Attributes:
        request: what was asked.
        prefix: the used part of the request's prefix, in the model's dtype and on its device; shared, never copied.
        chooser: how its next token is chosen, ``None`` if plainly the most probable one.
        detokenizer: turns its tokens into text.
        stream: where the answer goes; weak, so that an answer which nobody holds any more ends by itself.
        soft: the request's soft tokens in the model's dtype, or ``None``.
        adapter: the request's adapter in the model's dtype, shared with its equals; or ``None``.
        root: hash of everything in front of its tokens that changes their keys and values.
        computed: how many of its tokens have keys and values in the cache.
        pages: pages that hold them, in order; shared ones first.
        front: pages that hold its prefix, if it lies in pages.
        keys: what its full pages are known by, as far as they are.
        rows: places in the cache of the prefix in `front` and of all positions in `pages`, in order.
        generated: tokens chosen so far.
        reused: tokens that were in the cache when it was first admitted; ``None`` before.
    """

    request: Request
    prefix: KVPrefix | None
    chooser: TokenSampler | None
    detokenizer: Detokenizer
    stream: ref[AnswerStream]
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    root: bytes = b""
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    front: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    generated: list[int] = field(default_factory=list)
    reused: int | None = None

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the answer."""
        stream = self.stream()
        return stream is None or stream.cancelled

    @property
    def complete(self) -> bool:
        """Its constraint is fulfilled, and nothing can follow."""
        return self.chooser is not None and self.chooser.complete

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the token chosen last, if asked for."""
        return self.chooser.logprobs if self.chooser is not None else ()

    @property
    def error(self) -> str | None:
        """Why no token could be chosen, if that was the request's own doing."""
        return self.chooser.error if self.chooser is not None else None

    @property
    def length(self) -> int:
        """Own tokens, asked and generated."""
        return len(self.request.token_ids) + len(self.generated)

    @property
    def front_length(self) -> int:
        """Positions of its prefix that lie in pages: all or none."""
        return self.prefix.length if self.prefix is not None and self.front else 0

    def tokens(self, start: int, end: int) -> list[int]:
        """Own tokens ``start..end``."""
        asked = self.request.token_ids
        if start >= len(asked):
            return self.generated[start - len(asked) : end - len(asked)]
        return [*asked[start:end], *self.generated[: max(0, end - len(asked))]]
