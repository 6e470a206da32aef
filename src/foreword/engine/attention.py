"""Attention of the embedded engine: over each shared prefix once, over own pages a sequence, merged."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.attention import attend_with_lse, merge
from foreword.core import Batch, KVPrefix
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import Work


@dataclass
class _Shared:
    """All tokens of the step that stand behind one prefix: one dense product for all their queries.

    Attributes:
        prefix: its tensors are used where they lie.
        tokens: ``[n]`` places of the tokens in the step.
        positions: ``[n]`` their positions.
    """

    prefix: KVPrefix
    tokens: Tensor
    positions: Tensor

    def mask(self, window: int | None) -> Tensor | None:
        """``[1, 1, n, P]``; None if every token sees the whole prefix."""
        if window is None or int(self.positions.max()) < window:
            return None
        at = torch.arange(self.prefix.length, device=self.tokens.device)
        return (at[None, :] > self.positions[:, None] - window)[None, None]


@dataclass
class _Own:
    """Sequences that run equally many tokens, over their own pages.

    Attributes:
        tokens: ``[R, T]`` places of their tokens in the step.
        pages: ``[R, C]`` places of their keys in the cache; short rows repeat their last.
        ends: ``[R, T]`` how many own keys each token sees.
    """

    tokens: Tensor
    pages: Tensor
    ends: Tensor

    def mask(self, window: int | None) -> Tensor | None:
        """``[R, 1, T, C]``; None if everything is visible."""
        at = torch.arange(self.pages.shape[1], device=self.pages.device)
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
        self._own = _own(cache, plan, batch, device)
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
            keys = self._cache.keys[layer][own.pages].transpose(1, 2)
            values = self._cache.values[layer][own.pages].transpose(1, 2)
            found, found_lse = attend_with_lse(query[:, own.tokens].transpose(0, 1), keys, values, mask, scale)
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
        tokens = [torch.arange(batch.starts[i], batch.starts[i + 1], device=device) for i in indices]
        positions = [
            torch.arange(batch.offsets[i], batch.offsets[i] + batch.lengths[i], device=device) for i in indices
        ]
        found.append(_Shared(prefix, torch.cat(tokens), torch.cat(positions)))
    return found


def _own(cache: PagedCache, plan: Items[Work], batch: Batch, device: torch.device) -> list[_Own]:
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(batch.lengths):
        # Prompt chunks go alone: their contexts differ too much to be padded to one another.
        by_length.setdefault(length if length == 1 else -index, []).append(index)
    groups = []
    for members in by_length.values():
        longest = max(plan[i].end for i in members)
        pages = []
        for i in members:
            rows = cache.rows(plan[i].sequence, 0, plan[i].end)
            pages.append(rows + rows[-1:] * (longest - len(rows)))
        tokens = [list(range(batch.starts[i], batch.starts[i + 1])) for i in members]
        ends = [list(range(plan[i].start + 1, plan[i].end + 1)) for i in members]
        groups.append(
            _Own(
                torch.tensor(tokens, device=device),
                torch.tensor(pages, device=device),
                torch.tensor(ends, device=device),
            )
        )
    return groups
