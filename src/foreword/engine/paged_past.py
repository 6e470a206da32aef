"""`PagedPast`: what stands in front of a step's tokens, from pages, for a model run through Transformers' cache."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from foreword.core import Batch
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import ScheduledTokens
from foreword.engine.sequence import Sequence, StateRow
from foreword.models.past import Kept


class PagedPast:
    """The `foreword.models.past.Past` of one step.

    Keys and values lie in pages, a sequence's prefix included; its states are rows of the batch that ran it last. While
    the same sequences run together, their states are never copied.

    Args:
        cache: has slots for all tokens of the step, and every prefix in pages.
        scheduled: one for each sequence of the step's batch, in its order.
        batch: their tokens.
    """

    def __init__(self, cache: PagedCache, scheduled: Items[ScheduledTokens], batch: Batch) -> None:
        self._cache, self._scheduled = cache, scheduled
        self._device = batch.token_ids.device

    def length(self, sequence: int) -> int:
        each = self._scheduled[sequence]
        return each.sequence.paged_prefix_length + each.start

    def keeps(self, sequence: int) -> bool:
        return True

    def gather(self, sequences: Items[int], room: int) -> Kept:
        lengths = tuple(self.length(index) for index in sequences)
        longest = max(lengths)
        states = self._states([self._scheduled[index] for index in sequences])
        if not longest:
            shapes, rows = self._cache.shapes, len(sequences)
            empty = [torch.empty(rows, s.kv_heads, 0, 0, device=self._device) for s in shapes]
            return Kept(lengths, tuple(empty), tuple(empty), states)
        # Holes in front repeat the first slot, and room behind the last one: both hold numbers, and a mask hides them.
        table = np.empty((len(sequences), longest + room), dtype=np.int64)
        for row, index in enumerate(sequences):
            slots = self._scheduled[index].sequence.slots[: lengths[row]]
            table[row, : longest - len(slots)] = slots[0]
            table[row, longest - len(slots) : longest] = slots
            table[row, longest:] = slots[-1]
        slots = torch.from_numpy(table).to(self._device)
        keys, values = (tuple(self._cache.gather(side, slots)) for side in (self._cache.keys, self._cache.values))
        return Kept(lengths, keys, values, states, room)

    def store(self, sequences: Items[int], new: Kept) -> None:
        scheduled = [self._scheduled[index] for index in sequences]
        slots = np.concatenate([_new_slots(each) for each in scheduled])
        rows, columns = zip(
            *((row, n) for row, each in enumerate(scheduled) for n in range(each.num_tokens)), strict=True
        )
        at = torch.tensor(rows, device=self._device), torch.tensor(columns, device=self._device)
        places = torch.from_numpy(slots).to(self._device)
        for side, own in ((self._cache.keys, new.keys), (self._cache.values, new.values)):
            self._cache.scatter(side, places, (layer.transpose(1, 2)[at].transpose(0, 1) for layer in own))
        if any(new.states):
            for row, each in enumerate(scheduled):
                each.sequence.states = StateRow(new.states, row)

    def _states(self, scheduled: Items[ScheduledTokens]) -> tuple[Mapping[str, Tensor], ...]:
        """States ``[R, ...]`` of every layer."""
        found = [each.sequence.states for each in scheduled]
        first = found[0]
        if first is not None and [row and (row.batch is first.batch, row.index) for row in found] == [
            (True, index) for index in range(first.size)
        ]:
            return first.batch
        rows = [_states_of(each.sequence) for each in scheduled]
        return tuple(_stack([row[layer] for row in rows if row]) for layer in range(len(self._cache.shapes)))


def _states_of(sequence: Sequence) -> tuple[Mapping[str, Tensor], ...]:
    """Those that its last token left, or its prefix."""
    if sequence.states is not None:
        return sequence.states.tensors
    return sequence.prefix.states if sequence.prefix is not None else ()


def _stack(rows: Items[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _new_slots(each: ScheduledTokens) -> np.ndarray:
    own = each.sequence.slots[each.sequence.paged_prefix_length :]
    return own[each.start : each.end]
