"""Attention of the embedded engine: over own pages a sequence, over each long prefix once, merged."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreword.core import Batch, KVPrefix
from foreword.dense_attention import AttentionMask, AttentionSpec, attend, attend_with_lse, merge, with_sinks
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import ScheduledTokens
from foreword.engine.sequence import Sequence

SHORT = 64
"""Keys up to which a context is not worth a product of its own."""

GATHERED = 1024
"""Positions of a prefix, counted once for every sequence behind it, up to which they are read together with each
sequence's own: one product over different prefixes is quicker than a product for each, and a merge."""


PIECE = 128
"""Tokens whose scores over many keys are made at a time, few enough to stay in a CPU's cache."""


@dataclass(frozen=True)
class _QuerySpan:
    """Own tokens ``start..end`` of a sequence."""

    sequence: Sequence
    start: int
    end: int


@dataclass
class _SharedPrefix:
    """Tokens of the step that stand behind one prefix: one dense product for all their queries.

    Attributes:
        prefix: its tensors are used where they lie.
        tokens: ``[n]`` places of the tokens in the step, in ascending order.
        at: ``[n]`` how many keys are in front of each, the prefix included.
    """

    prefix: KVPrefix
    tokens: Tensor | slice
    at: Tensor

    def seen(self, window: int | None) -> AttentionMask | None:
        """What ``n`` tokens see of ``P`` positions; ``None`` if every token sees the whole prefix."""
        if window is None or int(self.at.max()) < window:
            return None
        keys = torch.arange(self.prefix.length, device=self.at.device)
        return AttentionMask((keys[None, :] > self.at[:, None] - window)[None, None])


@dataclass
class _OwnKeys:
    """Spans that lie together in the step and are equally long, over what the cache holds of each.

    Attributes:
        start, end: places of their tokens in the step.
        table: ``[R, C]`` rows of their keys in the cache; short rows repeat their last.
        ends: ``[R, T]`` how many of these keys each token sees at most.
        places: `table` for all heads, by their number.
    """

    start: int
    end: int
    table: Tensor
    ends: Tensor
    places: dict[int, Tensor] = field(default_factory=dict)

    def seen(self, window: int | None) -> AttentionMask | None:
        """What ``R`` times ``T`` tokens see of ``C`` keys; ``None`` if everything is visible."""
        at = torch.arange(self.table.shape[1], device=self.table.device)
        visible = at[None, None, :] < self.ends[:, :, None]
        if window is not None:
            visible = visible & (at[None, None, :] >= self.ends[:, :, None] - window)
        return None if bool(visible.all()) else AttentionMask(visible[:, None])


class CachedAttention:
    """How the queries of one step meet stored prefixes and the `PagedCache`; writes the step's keys first.

    Args:
        cache: has pages for all tokens of the step.
        plan: works in the order of `Scheduler.schedule`.
        batch: their tokens.
    """

    def __init__(self, cache: PagedCache, plan: Items[ScheduledTokens], batch: Batch) -> None:
        self._cache = cache
        self._device = batch.token_ids.device
        rows = [work.sequence.rows[work.sequence.front_length :][work.start : work.end] for work in plan]
        self._rows = torch.from_numpy(np.concatenate(rows)).to(self._device)[None]
        dense = _dense(plan)
        self._shared = [piece for prefix in dense for piece in self._make_shared(plan, batch, prefix)]
        self._own = [self._make_own(spans, start, dense) for start, spans in _alike(plan)]
        self._written: dict[int, Tensor] = {}
        self._seen: dict[int | None, tuple[list[AttentionMask | None], list[AttentionMask | None]]] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rule: AttentionSpec,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        if window not in self._seen:
            self._seen[window] = [s.seen(window) for s in self._shared], [o.seen(window) for o in self._own]
        seen_shared, seen_own = self._seen[window]
        self._write(layer, key, value)
        parts = [self._read(own, layer, query, key.shape[0]) for own in self._own]
        if not self._shared and rule.sinks is None:
            outs = [attend(*part, seen, rule) for part, seen in zip(parts, seen_own, strict=True)]
            return _joined(outs)
        found = [attend_with_lse(*part, seen, rule) for part, seen in zip(parts, seen_own, strict=True)]
        out, lse = (_joined(each) for each in zip(*found, strict=True))
        for shared, seen in zip(self._shared, seen_shared, strict=True):
            keys, values = shared.prefix.keys[layer][None], shared.prefix.values[layer][None]
            other, other_lse = attend_with_lse(query[None, :, shared.tokens], keys, values, seen, rule)
            at = shared.tokens
            out[:, at] = merge(out[:, at], lse[:, at], other[0], other_lse[0])
            if rule.sinks is not None:
                lse[:, at] = torch.logaddexp(lse[:, at], other_lse[0])
        return with_sinks(out, lse, rule.sinks)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store ``[kv_heads, N, dim]`` of the step's tokens."""
        heads = key.shape[0]
        if heads not in self._written:
            self._written[heads] = self._cache.every_head(self._rows, heads)
        self._cache.keys[layer].index_copy_(0, self._written[heads], key.flatten(0, 1))
        self._cache.values[layer].index_copy_(0, self._written[heads], value.flatten(0, 1))

    def _read(self, own: _OwnKeys, layer: int, query: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[R, heads, T, key_dim]``, keys and values ``[R, kv_heads, C, dim]``."""
        rows, count = own.table.shape
        if kv_heads not in own.places:
            own.places[kv_heads] = self._cache.every_head(own.table, kv_heads)
        # ``index_select`` copies whole rows and is about ten times as fast on a CPU as ``keys[places]``.
        keys = self._cache.keys[layer].index_select(0, own.places[kv_heads]).view(rows, kv_heads, count, -1)
        values = self._cache.values[layer].index_select(0, own.places[kv_heads]).view(rows, kv_heads, count, -1)
        return query[:, own.start : own.end].unflatten(1, (rows, -1)).transpose(0, 1), keys, values

    def _make_shared(self, plan: Items[ScheduledTokens], batch: Batch, prefix: KVPrefix) -> Iterator[_SharedPrefix]:
        members = [index for index, work in enumerate(plan) if work.sequence.prefix is prefix]
        tokens = [place for i in members for place in range(batch.starts[i], batch.starts[i + 1])]
        at = [prefix.length + own for i in members for own in range(plan[i].start, plan[i].end)]
        for first in range(0, len(tokens), PIECE):
            piece = slice(first, first + PIECE)
            yield _SharedPrefix(prefix, self._places(tokens[piece]), self._tensor(at[piece]))

    def _make_own(self, spans: Items[_QuerySpan], start: int, dense: Items[KVPrefix]) -> _OwnKeys:
        # Behind a prefix with a product of its own, a sequence reads only its own tokens.
        skipped = [s.sequence.front_length if s.sequence.prefix in dense else 0 for s in spans]
        ahead = [s.sequence.front_length - skip for s, skip in zip(spans, skipped, strict=True)]
        table = self._cache.table([s.sequence for s in spans], [s.end for s in spans], skipped)
        ends = [list(range(n + s.start + 1, n + s.end + 1)) for n, s in zip(ahead, spans, strict=True)]
        return _OwnKeys(
            start=start,
            end=start + sum(span.end - span.start for span in spans),
            table=torch.from_numpy(table).to(self._device),
            ends=self._tensor(ends),
        )

    def _places(self, numbers: list[int]) -> Tensor | slice:
        """Neighbours are a view, which copies nothing."""
        first, last = numbers[0], numbers[-1]
        return slice(first, last + 1) if last - first + 1 == len(numbers) else self._tensor(numbers)

    def _tensor(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def _joined(parts: Items[Tensor]) -> Tensor:
    """``[R, heads, T, ...]`` of all spans -> ``[heads, N, ...]``, in the order of the step."""
    flat = [part.transpose(0, 1).flatten(1, 2) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _dense(plan: Items[ScheduledTokens]) -> list[KVPrefix]:
    """Prefixes of the step that are worth a product of their own, or that lie in no pages."""
    behind: dict[KVPrefix, int] = {}
    paged: dict[KVPrefix, bool] = {}
    for work in plan:
        if (prefix := work.sequence.prefix) is not None:
            behind[prefix] = behind.get(prefix, 0) + 1
            paged[prefix] = bool(work.sequence.front)
    return [prefix for prefix, n in behind.items() if not paged[prefix] or n * prefix.length > GATHERED]


def _alike(plan: Items[ScheduledTokens]) -> Iterator[tuple[int, list[_QuerySpan]]]:
    """The step's tokens in products, each with the place of its first: pieces of a prompt, each of which reads what is
    in front of its last token; single tokens together with others that see similarly many keys."""
    start, alike, fewest = 0, list[_QuerySpan](), 0
    for work in plan:
        keys = work.sequence.front_length + work.end
        if alike and (work.tokens > 1 or keys > max(SHORT, 2 * fewest)):
            yield start, alike
            start, alike = start + len(alike), []
        if work.tokens == 1:
            fewest = fewest if alike else keys
            alike.append(_QuerySpan(work.sequence, work.start, work.end))
            continue
        for first in range(work.start, work.end, PIECE):
            last = min(first + PIECE, work.end)
            yield start, [_QuerySpan(work.sequence, first, last)]
            start += last - first
    if alike:
        yield start, alike
