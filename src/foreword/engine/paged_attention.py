"""`PagedAttention`: attention of the embedded engine, over the pages of each sequence and once over each long prefix.

A prefix that many sequences of a step share is read once for all their queries, and the results are merged by their
log-sum-exp: cascade attention (Ye et al. 2024, FlashInfer).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreword.core import Batch, KVPrefix
from foreword.dense_attention import (
    AttentionMask,
    AttentionSpec,
    apply_sinks,
    inference_attention,
    inference_attention_with_lse,
    merge_attn_states,
)
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import ScheduledTokens
from foreword.engine.sequence import Sequence

MIN_SPLIT_KEYS = 64
"""Sequences with up to so many keys are padded into one product, whatever their lengths."""

MAX_GATHERED_KEYS = 1024
"""Positions of a prefix, counted once for every sequence behind it, up to which they are gathered with each sequence's
own: one product over different prefixes is quicker than a product for each, and a merge."""

QUERY_CHUNK = 128
"""Queries whose scores over many keys are computed at a time, few enough to stay in a CPU's cache."""


@dataclass(frozen=True)
class _QuerySpan:
    """Own tokens ``start..end`` of a sequence."""

    sequence: Sequence
    start: int
    end: int


@dataclass
class _SharedPrefix:
    """Queries of the step that stand behind one prefix: one product over its positions.

    Attributes:
        prefix: its tensors are read where they lie.
        queries: ``[n]`` indices of the queries in the step, ascending.
        positions: ``[n]`` number of keys in front of each query, the prefix included.
    """

    prefix: KVPrefix
    queries: Tensor | slice
    positions: Tensor

    def mask(self, window: int | None) -> AttentionMask | None:
        """``n`` queries by ``P`` positions; ``None`` if every query sees the whole prefix."""
        if window is None or int(self.positions.max()) < window:
            return None
        keys = torch.arange(self.prefix.length, device=self.positions.device)
        return AttentionMask((keys[None, :] > self.positions[:, None] - window)[None, None])


@dataclass
class _OwnKeys:
    """``R`` spans of ``T`` queries each, neighbours in the step, and the cache slots of their keys.

    Attributes:
        start, end: indices of the queries in the step.
        slots: ``[R, C]``; short rows repeat their last slot.
        ends: ``[R, T]`` how many of these keys each query sees at most.
        head_slots: `slots` for all heads, by number of key heads.
    """

    start: int
    end: int
    slots: Tensor
    ends: Tensor
    head_slots: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> AttentionMask | None:
        """``[R, 1, T, C]``; ``None`` if every query sees every key."""
        keys = torch.arange(self.slots.shape[1], device=self.slots.device)
        visible = keys[None, None, :] < self.ends[:, :, None]
        if window is not None:
            visible = visible & (keys[None, None, :] >= self.ends[:, :, None] - window)
        return None if bool(visible.all()) else AttentionMask(visible[:, None])


class PagedAttention:
    """The `foreword.attention.AttentionFn` of one step; writes the step's keys and values to the cache first.

    Args:
        cache: has slots for all tokens of the step.
        scheduled: in the order of `Scheduler.schedule`.
        batch: their tokens.
    """

    def __init__(self, cache: PagedCache, scheduled: Items[ScheduledTokens], batch: Batch) -> None:
        self._cache = cache
        self._device = batch.token_ids.device
        slots = [each.sequence.slots[each.sequence.paged_prefix_length :][each.start : each.end] for each in scheduled]
        self._new_slots = torch.from_numpy(np.concatenate(slots)).to(self._device)[None]
        separate = _separate_prefixes(scheduled)
        self._shared = [chunk for prefix in separate for chunk in self._shared_prefix(scheduled, batch, prefix)]
        self._own = [self._own_keys(spans, start, separate) for start, spans in _group_queries(scheduled)]
        self._new_head_slots: dict[int, Tensor] = {}
        self._masks: dict[int | None, tuple[list[AttentionMask | None], list[AttentionMask | None]]] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spec: AttentionSpec,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        if window not in self._masks:
            self._masks[window] = [s.mask(window) for s in self._shared], [o.mask(window) for o in self._own]
        shared_masks, own_masks = self._masks[window]
        self._write(layer, key, value)
        inputs = [self._gather(own, layer, query, key.shape[0]) for own in self._own]
        if not self._shared and spec.sinks is None:
            outs = [inference_attention(*each, mask, spec) for each, mask in zip(inputs, own_masks, strict=True)]
            return _concat(outs)
        states = [inference_attention_with_lse(*each, mask, spec) for each, mask in zip(inputs, own_masks, strict=True)]
        out, lse = (_concat(each) for each in zip(*states, strict=True))
        for shared, mask in zip(self._shared, shared_masks, strict=True):
            keys, values = shared.prefix.keys[layer][None], shared.prefix.values[layer][None]
            at = shared.queries
            prefix_out, prefix_lse = inference_attention_with_lse(query[None, :, at], keys, values, mask, spec)
            out[:, at] = merge_attn_states(out[:, at], lse[:, at], prefix_out[0], prefix_lse[0])
            if spec.sinks is not None:
                lse[:, at] = torch.logaddexp(lse[:, at], prefix_lse[0])
        return apply_sinks(out, lse, spec.sinks)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write ``[kv_heads, N, dim]`` of the step's tokens to their slots."""
        heads = key.shape[0]
        if heads not in self._new_head_slots:
            self._new_head_slots[heads] = self._cache.head_slots(self._new_slots, heads)
        self._cache.keys[layer].index_copy_(0, self._new_head_slots[heads], key.flatten(0, 1))
        self._cache.values[layer].index_copy_(0, self._new_head_slots[heads], value.flatten(0, 1))

    def _gather(self, own: _OwnKeys, layer: int, query: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[R, heads, T, key_dim]``, keys and values ``[R, kv_heads, C, dim]``."""
        rows, count = own.slots.shape
        if kv_heads not in own.head_slots:
            own.head_slots[kv_heads] = self._cache.head_slots(own.slots, kv_heads)
        # ``index_select`` copies whole rows and is about ten times as fast on a CPU as ``keys[slots]``.
        keys = self._cache.keys[layer].index_select(0, own.head_slots[kv_heads]).view(rows, kv_heads, count, -1)
        values = self._cache.values[layer].index_select(0, own.head_slots[kv_heads]).view(rows, kv_heads, count, -1)
        return query[:, own.start : own.end].unflatten(1, (rows, -1)).transpose(0, 1), keys, values

    def _shared_prefix(
        self, scheduled: Items[ScheduledTokens], batch: Batch, prefix: KVPrefix
    ) -> Iterator[_SharedPrefix]:
        members = [index for index, each in enumerate(scheduled) if each.sequence.prefix is prefix]
        queries = [place for i in members for place in range(batch.starts[i], batch.starts[i + 1])]
        positions = [prefix.length + own for i in members for own in range(scheduled[i].start, scheduled[i].end)]
        for first in range(0, len(queries), QUERY_CHUNK):
            chunk = slice(first, first + QUERY_CHUNK)
            yield _SharedPrefix(prefix, self._index(queries[chunk]), self._tensor(positions[chunk]))

    def _own_keys(self, spans: Items[_QuerySpan], start: int, separate: Items[KVPrefix]) -> _OwnKeys:
        # Behind a prefix with a product of its own, a sequence reads only its own tokens.
        skipped = [s.sequence.paged_prefix_length if s.sequence.prefix in separate else 0 for s in spans]
        ahead = [s.sequence.paged_prefix_length - skip for s, skip in zip(spans, skipped, strict=True)]
        slots = self._cache.slot_table([s.sequence for s in spans], [s.end for s in spans], skipped)
        ends = [list(range(n + s.start + 1, n + s.end + 1)) for n, s in zip(ahead, spans, strict=True)]
        return _OwnKeys(
            start=start,
            end=start + sum(span.end - span.start for span in spans),
            slots=torch.from_numpy(slots).to(self._device),
            ends=self._tensor(ends),
        )

    def _index(self, numbers: list[int]) -> Tensor | slice:
        """An index for ascending numbers; a slice for neighbours, which copies nothing."""
        first, last = numbers[0], numbers[-1]
        return slice(first, last + 1) if last - first + 1 == len(numbers) else self._tensor(numbers)

    def _tensor(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def _concat(parts: Items[Tensor]) -> Tensor:
    """``[R, heads, T, ...]`` of all spans -> ``[heads, N, ...]``, in the order of the step."""
    flat = [part.transpose(0, 1).flatten(1, 2) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _separate_prefixes(scheduled: Items[ScheduledTokens]) -> list[KVPrefix]:
    """Prefixes that get a product of their own: those not in pages, and those that many sequences of the step share."""
    num_sequences: dict[KVPrefix, int] = {}
    paged: dict[KVPrefix, bool] = {}
    for each in scheduled:
        if (prefix := each.sequence.prefix) is not None:
            num_sequences[prefix] = num_sequences.get(prefix, 0) + 1
            paged[prefix] = bool(each.sequence.prefix_pages)
    return [p for p, n in num_sequences.items() if not paged[p] or n * p.length > MAX_GATHERED_KEYS]


def _group_queries(scheduled: Items[ScheduledTokens]) -> Iterator[tuple[int, list[_QuerySpan]]]:
    """The step's queries in products, each with the index of its first: a prompt in chunks of `QUERY_CHUNK`; single
    queries together with others that see similarly many keys."""
    start, group, fewest = 0, list[_QuerySpan](), 0
    for each in scheduled:
        keys = each.sequence.paged_prefix_length + each.end
        if group and (each.num_tokens > 1 or keys > max(MIN_SPLIT_KEYS, 2 * fewest)):
            yield start, group
            start, group = start + len(group), []
        if each.num_tokens == 1:
            fewest = fewest if group else keys
            group.append(_QuerySpan(each.sequence, each.start, each.end))
            continue
        for first in range(each.start, each.end, QUERY_CHUNK):
            last = min(first + QUERY_CHUNK, each.end)
            yield start, [_QuerySpan(each.sequence, first, last)]
            start += last - first
    if group:
        yield start, group
