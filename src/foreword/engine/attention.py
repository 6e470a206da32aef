"""Attention of the embedded engine: over each shared prefix once, over own pages a sequence, merged."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.core import Batch, KVPrefix
from foreword.dense_attention import attend_with_lse, merge
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import Work

SHORT = 64
"""Own tokens up to which a context is not worth a product of its own."""


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

    def mask(self, window: int | None) -> Tensor | None:
        """``[1, 1, n, P]``; None if every token sees the whole prefix."""
        if window is None or int(self.at.max()) < window:
            return None
        keys = torch.arange(self.prefix.length, device=self.tokens.device)
        return (keys[None, :] > self.at[:, None] - window)[None, None]


@dataclass
class _Own:
    """Sequences that run equally many tokens, over their own pages.

    Attributes:
        tokens: ``[R, T]`` places of their tokens in the step.
        table: ``[R, C]`` places of their keys in the cache; short rows repeat their last.
        ends: ``[R, T]`` how many own keys each token sees.
    """

    tokens: Tensor
    table: Tensor
    ends: Tensor

    def mask(self, window: int | None) -> Tensor | None:
        """``[R, 1, T, C]``; None if everything is visible."""
        at = torch.arange(self.table.shape[1], device=self.table.device)
        visible = at[None, None, :] < self.ends[:, :, None]
        if window is not None:
            visible = visible & (at[None, None, :] >= self.ends[:, :, None] - window)
        return None if bool(visible.all()) else visible[:, None]


class CachedAttention:
    """How the queries of one step meet stored prefixes and the `PagedCache`; writes the step's keys first."""

    def __init__(self, cache: PagedCache, plan: Items[Work], batch: Batch) -> None:
        device = batch.token_ids.device
        self._cache = cache
        rows = [row for work in plan for row in cache.rows(work.sequence, work.start, work.end)]
        self._rows = torch.tensor(rows, device=device)
        self._shared = _shared(plan, batch, device)
        self._own = [_own(cache, plan, members, batch, device) for members in _alike(plan)]
        self._masks: dict[int | None, tuple[list[Tensor | None], list[Tensor | None]]] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        if window not in self._masks:
            self._masks[window] = (
                [s.mask(window) for s in self._shared],
                [o.mask(window) for o in self._own],
            )
        shared_masks, own_masks = self._masks[window]
        self._cache.write(layer, self._rows, key, value)
        out = torch.empty(*query.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
        lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        for own, mask in zip(self._own, own_masks, strict=True):
            rows = query[:, own.tokens].transpose(0, 1)
            found, found_lse = attend_with_lse(rows, *self._cache.read(layer, own.table), mask, scale)
            out[:, own.tokens] = found.transpose(0, 1)
            lse[:, own.tokens] = found_lse.transpose(0, 1)
        for shared, mask in zip(self._shared, shared_masks, strict=True):
            keys, values = shared.prefix.keys[layer][None], shared.prefix.values[layer][None]
            found, found_lse = attend_with_lse(query[None, :, shared.tokens], keys, values, mask, scale)
            at = shared.tokens
            out[:, at] = merge(out[:, at], lse[:, at], found[0], found_lse[0])
        return out


def _shared(plan: Items[Work], batch: Batch, device: torch.device) -> list[_Shared]:
    members: dict[KVPrefix, list[int]] = {}
    for index, work in enumerate(plan):
        if work.sequence.prefix is not None:
            members.setdefault(work.sequence.prefix, []).append(index)
    found = []
    for prefix, indices in members.items():
        tokens = [place for i in indices for place in range(batch.starts[i], batch.starts[i + 1])]
        at = [prefix.length + own for i in indices for own in range(plan[i].start, plan[i].end)]
        found.append(_Shared(prefix, torch.tensor(tokens, device=device), torch.tensor(at, device=device)))
    return found


def _alike(plan: Items[Work]) -> list[list[int]]:
    """Prompt chunks alone; single tokens together with others that have similarly many keys."""
    groups = [[index] for index, work in enumerate(plan) if work.end - work.start > 1]
    group: list[int] = []
    singles = (index for index, work in enumerate(plan) if work.end - work.start == 1)
    for index in sorted(singles, key=lambda index: plan[index].end):
        # Padding costs at most as much again as the shortest; longer ones start a product of their own.
        if not group or plan[index].end > max(SHORT, 2 * plan[group[0]].end):
            group = []
            groups.append(group)
        group.append(index)
    return groups


def _own(cache: PagedCache, plan: Items[Work], members: list[int], batch: Batch, device: torch.device) -> _Own:
    works = [plan[index] for index in members]
    return _Own(
        tokens=torch.tensor([range(batch.starts[i], batch.starts[i + 1]) for i in members], device=device),
        table=cache.table([work.sequence for work in works], [work.end for work in works], device),
        ends=torch.tensor([range(work.start + 1, work.end + 1) for work in works], device=device),
    )
