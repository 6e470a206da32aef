"""Attention of the embedded engine: over own pages a sequence, over each long prefix once, merged."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreword.core import Batch, KVPrefix
from foreword.dense_attention import Rule, Seen, attend_with_lse, merge, with_sinks
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import Work

SHORT = 64
"""Keys up to which a context is not worth a product of its own."""

GATHERED = 1024
"""Positions of a prefix, counted once for every sequence behind it, up to which they are read together with each
sequence's own: one product over different prefixes is quicker than a product for each, and a merge."""


@dataclass
class _Shared:
    """All tokens of the step that stand behind one prefix: one dense product for all their queries.

    Attributes:
        prefix: its tensors are used where they lie.
        tokens: ``[n]`` places of the tokens in the step.
        at: ``[n]`` how many keys are in front of each, the prefix included.
    """

    prefix: KVPrefix
    tokens: Tensor
    at: Tensor

    def seen(self, window: int | None) -> Seen | None:
        """What ``n`` tokens see of ``P`` positions; ``None`` if every token sees the whole prefix."""
        if window is None or int(self.at.max()) < window:
            return None
        keys = torch.arange(self.prefix.length, device=self.tokens.device)
        return Seen((keys[None, :] > self.at[:, None] - window)[None, None])


@dataclass
class _Own:
    """Works that lie together in the step and run equally many tokens, over what the cache holds of each.

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

    def seen(self, window: int | None) -> Seen | None:
        """What ``R`` times ``T`` tokens see of ``C`` keys; ``None`` if everything is visible."""
        at = torch.arange(self.table.shape[1], device=self.table.device)
        visible = at[None, None, :] < self.ends[:, :, None]
        if window is not None:
            visible = visible & (at[None, None, :] >= self.ends[:, :, None] - window)
        return None if bool(visible.all()) else Seen(visible[:, None])


class CachedAttention:
    """How the queries of one step meet stored prefixes and the `PagedCache`; writes the step's keys first.

    Args:
        cache: has pages for all tokens of the step.
        plan: works in the order of `Scheduler.schedule`.
        batch: their tokens.
    """

    def __init__(self, cache: PagedCache, plan: Items[Work], batch: Batch) -> None:
        self._cache = cache
        self._device = batch.token_ids.device
        rows = [work.sequence.rows[work.sequence.front_length :][work.start : work.end] for work in plan]
        self._rows = torch.from_numpy(np.concatenate(rows)).to(self._device)[None]
        dense = _dense(plan)
        self._shared = [self._make_shared(plan, batch, prefix) for prefix in dense]
        self._own = [self._make_own(plan[first:last], batch, first, dense) for first, last in _alike(plan)]
        self._written: dict[int, Tensor] = {}
        self._seen: dict[int | None, tuple[list[Seen | None], list[Seen | None]]] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rule: Rule,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        if window not in self._seen:
            self._seen[window] = [s.seen(window) for s in self._shared], [o.seen(window) for o in self._own]
        seen_shared, seen_own = self._seen[window]
        self._write(layer, key, value)
        found = [
            self._attend(own, seen, layer, query, rule, key.shape[0])
            for own, seen in zip(self._own, seen_own, strict=True)
        ]
        out = found[0][0] if len(found) == 1 else torch.cat([part for part, _ in found], dim=1)
        if not self._shared and rule.sinks is None:
            return out
        lse = found[0][1] if len(found) == 1 else torch.cat([part for _, part in found], dim=1)
        for shared, seen in zip(self._shared, seen_shared, strict=True):
            keys, values = shared.prefix.keys[layer][None], shared.prefix.values[layer][None]
            other, other_lse = attend_with_lse(query[None, :, shared.tokens], keys, values, seen, rule)
            at = shared.tokens
            out = out.index_copy(1, at, merge(out[:, at], lse[:, at], other[0], other_lse[0]))
            lse = lse.index_copy(1, at, torch.logaddexp(lse[:, at], other_lse[0])) if rule.sinks is not None else lse
        return with_sinks(out, lse, rule.sinks)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store ``[kv_heads, N, dim]`` of the step's tokens."""
        heads = key.shape[0]
        if heads not in self._written:
            self._written[heads] = self._cache.every_head(self._rows, heads)
        self._cache.keys[layer].index_copy_(0, self._written[heads], key.flatten(0, 1))
        self._cache.values[layer].index_copy_(0, self._written[heads], value.flatten(0, 1))

    def _attend(
        self, own: _Own, seen: Seen | None, layer: int, query: Tensor, rule: Rule, kv_heads: int
    ) -> tuple[Tensor, Tensor]:
        """``[heads, R * T, dim]`` and the log-sum-exp ``[heads, R * T]``."""
        rows, count = own.table.shape
        if kv_heads not in own.places:
            own.places[kv_heads] = self._cache.every_head(own.table, kv_heads)
        # ``index_select`` copies whole rows and is about ten times as fast on a CPU as ``keys[places]``.
        keys = self._cache.keys[layer].index_select(0, own.places[kv_heads]).view(rows, kv_heads, count, -1)
        values = self._cache.values[layer].index_select(0, own.places[kv_heads]).view(rows, kv_heads, count, -1)
        queries = query[:, own.start : own.end].unflatten(1, (rows, -1)).transpose(0, 1)
        out, lse = attend_with_lse(queries, keys, values, seen, rule)
        return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)

    def _make_shared(self, plan: Items[Work], batch: Batch, prefix: KVPrefix) -> _Shared:
        members = [index for index, work in enumerate(plan) if work.sequence.prefix is prefix]
        tokens = [place for i in members for place in range(batch.starts[i], batch.starts[i + 1])]
        at = [prefix.length + own for i in members for own in range(plan[i].start, plan[i].end)]
        return _Shared(prefix, self._tensor(tokens), self._tensor(at))

    def _make_own(self, works: Items[Work], batch: Batch, first: int, dense: Items[KVPrefix]) -> _Own:
        # Behind a prefix with a product of its own, a sequence reads only its own tokens.
        skipped = [work.sequence.front_length if work.sequence.prefix in dense else 0 for work in works]
        ahead = [work.sequence.front_length - skip for work, skip in zip(works, skipped, strict=True)]
        table = self._cache.table([w.sequence for w in works], [w.end for w in works], skipped)
        ends = [list(range(n + w.start + 1, n + w.end + 1)) for n, w in zip(ahead, works, strict=True)]
        return _Own(
            start=batch.starts[first],
            end=batch.starts[first + len(works)],
            table=torch.from_numpy(table).to(self._device),
            ends=self._tensor(ends),
        )

    def _tensor(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def _dense(plan: Items[Work]) -> list[KVPrefix]:
    """Prefixes of the step that are worth a product of their own, or that lie in no pages."""
    behind: dict[KVPrefix, int] = {}
    paged: dict[KVPrefix, bool] = {}
    for work in plan:
        if (prefix := work.sequence.prefix) is not None:
            behind[prefix] = behind.get(prefix, 0) + 1
            paged[prefix] = bool(work.sequence.front)
    return [prefix for prefix, n in behind.items() if not paged[prefix] or n * prefix.length > GATHERED]


def _alike(plan: Items[Work]) -> Iterator[tuple[int, int]]:
    """Neighbours in the plan that are one product: prompt chunks alone; single tokens together with others that see
    similarly many keys."""
    first, single = 0, 0
    for index, work in enumerate(plan):
        keys = work.sequence.front_length + work.end
        if index and (work.tokens > 1 or keys > max(SHORT, 2 * single)):
            yield first, index
            first = index
        if first == index:
            single = keys
    yield first, len(plan)
