"""`Sequence`: one request while the engine works on it: its tokens, its place in the cache, its stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np

from foreword.core import Adapter, KVPrefix
from foreword.engine.protocol import Request
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler
from foreword.text.detokenize import Detokenizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class StateRow:
    """The states of one sequence, as a row of the batch that ran it last.

    Attributes:
        batch: states ``[R, ...]`` of every layer by name.
        index: the row.
    """

    batch: tuple[Mapping[str, torch.Tensor], ...]
    index: int

    @property
    def size(self) -> int:
        """``R``."""
        return next(len(state) for layer in self.batch for state in layer.values())

    @property
    def tensors(self) -> tuple[Mapping[str, torch.Tensor], ...]:
        """The states of every layer, for this sequence alone."""
        return tuple({name: state[self.index] for name, state in layer.items()} for layer in self.batch)


@dataclass(eq=False)
class Sequence:
    """State of one request, touched only by the thread that steps the engine; named as vLLM's ``Request``.

    Its own tokens are those of the request and those generated; positions of the prefix are not counted among them.

    Attributes:
        request: what was submitted.
        prefix: the used part of the request's prefix, in the model's dtype and on its device; shared, never copied.
        sampler: chooses its next token.
        detokenizer: turns its tokens into text.
        stream: receives the chunks; a weak reference, so that an answer without a reader ends.
        soft: the request's soft tokens ``[S, hidden]`` in the model's dtype, or ``None``.
        adapter: the request's adapter in the model's dtype, one object for equal adapters; or ``None``.
        root_hash: hash over prefix, adapter and salt, which the hashes of its pages start from.
        num_computed_tokens: own tokens that have keys and values in the cache.
        pages: ids of the pages that hold its own tokens, in order; shared ones first.
        prefix_pages: ids of the pages that hold its prefix; empty if the prefix is not in pages.
        page_hashes: hashes of its full pages, as far as they are computed.
        slots: ``[C]`` cache slot of every position in `prefix_pages` and `pages`, in order.
        output_token_ids: tokens generated so far.
        num_cached_tokens: own tokens that were in the cache at its first admission; ``None`` before.
        states: of layers that keep some, behind its computed tokens; ``None`` before the first and in other models.
    """

    request: Request
    prefix: KVPrefix | None
    sampler: TokenSampler
    detokenizer: Detokenizer
    stream: ref[ChunkStream]
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    root_hash: bytes = b""
    num_computed_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    prefix_pages: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    slots: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    output_token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None
    states: StateRow | None = None

    @property
    def cancelled(self) -> bool:
        """Whether its stream was cancelled or garbage-collected."""
        stream = self.stream()
        return stream is None or stream.cancelled

    @property
    def num_tokens(self) -> int:
        """Own tokens, of the prompt and generated."""
        return len(self.request.token_ids) + len(self.output_token_ids)

    @property
    def paged_prefix_length(self) -> int:
        """Positions of its prefix that lie in pages: all or none."""
        return self.prefix.length if self.prefix is not None and self.prefix_pages else 0

    def token_ids(self, start: int, end: int) -> list[int]:
        """Ids of its own tokens ``start..end``."""
        prompt = self.request.token_ids
        if start >= len(prompt):
            return self.output_token_ids[start - len(prompt) : end - len(prompt)]
        return [*prompt[start:end], *self.output_token_ids[: max(0, end - len(prompt))]]
