"""`CachedModel`: a causal model that is run through Transformers' own cache, in padded batches.

For models that the registered attention function does not reach, or not in every layer: those with states, with an
attention of their own (Bloom, Falcon, GPT-J), with masks that only they know (Llama 4). It takes the same ragged
batches as other models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foreword.attention import AttentionFn
from foreword.core import Batch, KVPrefix, LayerShape, StateShape
from foreword.errors import UnsupportedModel
from foreword.models.cache_layers import LINEAR_CACHE, IndexedKeysLayer, KeysLayer, StatesLayer, make_cache
from foreword.models.chosen_rows import logits_at
from foreword.models.language_model import LanguageModel, embed_tokens, model_body
from foreword.models.past import BatchPast, Kept, Past
from foreword.models.stacked_states import StackedStates, first_states, stacked_states_argument

DISCOVERY_TOKENS = 4

MAX_PADDING = 2
"""Rows of one forward are at most so many times as long as its shortest."""


@dataclass(frozen=True)
class CacheSlot:
    """Where a layer of a model's cache is among the layers of an identity.

    Attributes:
        layer: index in the cache.
        slot: index in the identity of its keys, values and states.
        index_slot: index in the identity of the keys of its indexer, which are those of a layer with one head and no
            values; or ``None``.
    """

    layer: int
    slot: int
    index_slot: int | None = None


@dataclass(frozen=True)
class CacheLayout:
    """The layers of a model's cache that keep something.

    Attributes:
        slots: of these layers, in their order.
        shapes: what every layer of the identity keeps.
        state_dtypes: of the states of every layer of the identity, by name.
        first: by layer, states before any token, of a model that takes them as a list (`StackedStates`).
    """

    slots: tuple[CacheSlot, ...]
    shapes: tuple[LayerShape, ...]
    state_dtypes: tuple[dict[str, torch.dtype], ...]
    first: tuple[dict[str, Tensor], ...] = ()


@dataclass(eq=False, repr=False)
class CachedModel(LanguageModel):
    """A causal model behind whose cache every request is run.

    Rows are padded at their ends, where a causal model never looks; what stands in front of them ends at the same
    column. A row whose states are needed is run without padding.

    Attributes:
        layout: of its cache.
        mixes_lengths: rows with fronts of different lengths can share a forward; else they are grouped.
        one_by_one: tokens behind a front are run one after another, since the model begins anew with several.
    """

    carried: ClassVar[str] = "through Transformers' cache"
    checkpoints: ClassVar[bool] = False
    layout: CacheLayout = CacheLayout((), (), ())
    mixes_lengths: bool = True
    one_by_one: bool = False

    @property
    def limits(self) -> tuple[str, ...]:
        alone = ("requests behind fronts of different lengths do not share a forward",) * (not self.mixes_lengths)
        slow = ("tokens behind a front run one after another, also those of a prompt",) * self.one_by_one
        single = ("rows of one token run one after another, so answers are written one at a time",)
        wait = "batches are padded, and wait for their longest row"
        return (*super().limits, wait, *alone, *slow, *single * bool(self.layout.first))

    @torch.no_grad()
    def kept(self, batch: Batch, positions: int | None = None) -> KVPrefix:
        if positions is not None:
            raise UnsupportedModel(
                f"{self.name} keeps what is behind its last token; give it the tokens in front alone."
            )
        past = BatchPast(batch, self.identity, [len(batch.lengths) - 1])
        self._outputs(batch, torch.zeros(1, dtype=torch.long, device=self.device), past, hidden=True)
        return past.kept[len(batch.lengths) - 1]

    def _outputs(
        self, batch: Batch, output_indices: Tensor, attend: AttentionFn | Past | None, *, hidden: bool
    ) -> Tensor:
        past = cast(Past, attend) if attend is not None else BatchPast(batch, self.identity)
        wanted = output_indices.tolist()
        place = {index: number for number, index in enumerate(dict.fromkeys(wanted))}
        found: list[Tensor | None] = [None] * len(place)
        for group in self._groups(batch, past):
            outputs = [(row, n) for row, i in enumerate(group) for n in range(batch.lengths[i])]
            mine = [(row, n) for row, n in outputs if batch.starts[group[row]] + n in place]
            rows = self._forward(batch, group, past, mine, hidden=hidden)
            for (row, n), values in zip(mine, rows, strict=True):
                found[place[batch.starts[group[row]] + n]] = values
        rows = torch.stack([each for each in found if each is not None])
        return rows if len(place) == len(wanted) else rows[[place[index] for index in wanted]]

    def _groups(self, batch: Batch, past: Past) -> Iterator[list[int]]:
        """Sequences that share a forward; a parent comes before its children."""
        depths: list[int] = []
        for parent in batch.parents:
            depths.append(0 if parent is None else depths[parent] + 1)
        for depth in range(max(depths) + 1):
            level = [index for index, each in enumerate(depths) if each == depth]
            groups: dict[tuple[Any, ...], list[list[int]]] = {}
            for index in sorted(level, key=lambda index: batch.lengths[index]):
                length, front = batch.lengths[index], past.length(index)
                exact = length if self.identity.keeps_states and past.keeps(index) else None
                # A model that takes its states as a list mixes up rows of one token: it drops their time dimension.
                alone = index if self.layout.first and length == 1 else None
                key = (exact, alone, bool(front) if self.mixes_lengths else front)
                found = groups.setdefault(key, [])
                if not found or length > MAX_PADDING * batch.lengths[found[-1][0]]:
                    found.append([])
                found[-1].append(index)
            yield from (group for found in groups.values() for group in found)

    def _forward(
        self, batch: Batch, group: Sequence[int], past: Past, outputs: Sequence[tuple[int, int]], *, hidden: bool
    ) -> Tensor:
        """Run some sequences as padded rows. Returns the logits or hidden states at ``outputs`` (row, token)."""
        lengths = [batch.lengths[index] for index in group]
        longest = max(lengths)
        front = past.gather(group, longest)
        # A short row repeats its last token, at its last position.
        steps = [[min(step, length - 1) for step in range(longest)] for length in lengths]
        tokens = torch.tensor(
            [[batch.starts[i] + step for step in row] for i, row in zip(group, steps, strict=True)], device=self.device
        )
        positions = torch.tensor(
            [[batch.position_offsets[i] + step for step in row] for i, row in zip(group, steps, strict=True)],
            device=self.device,
        )
        cache = self._fill(front)
        adapters = [batch.adapters[index] if batch.adapters is not None else None for index in group]
        size = 1 if self.one_by_one and front.length else longest
        parts = []
        with self._adapted_rows(adapters):
            for start in range(0, longest, size):
                part = slice(start, start + size)
                chosen = [(row, n - start) for row, n in outputs if start <= n < start + size]
                inputs = self._inputs(batch, tokens[:, part], positions[:, part], front, start + size)
                parts.append(self._call(inputs, cache, chosen, hidden=hidden))
        past.store(group, self._read(cache, front, lengths))
        if len(parts) == 1:
            return parts[0]
        order = sorted(range(len(outputs)), key=lambda number: outputs[number][1] // size)
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def _inputs(
        self, batch: Batch, tokens: Tensor, positions: Tensor, front: Kept, columns: int
    ) -> dict[str, Tensor | None]:
        """Arguments of the model for ``tokens [R, T]``, indices in the batch.

        Args:
            columns: those of the rows so far, these tokens included.
        """
        known = signature(self.model.forward).parameters
        inputs: dict[str, Tensor | None] = {}
        if batch.embeds is None or batch.embed_indices is None:
            inputs["input_ids"] = batch.token_ids[tokens]
        else:
            inputs["inputs_embeds"] = embed_tokens(self.model, batch)[tokens]
        if "position_ids" in known:
            inputs["position_ids"] = positions + self.first_position
        if len(set(front.lengths)) > 1 and any(layer.kv_heads for layer in self.layout.shapes):
            seen = torch.ones(len(tokens), front.length + columns, dtype=torch.long, device=self.device)
            for row, length in enumerate(front.lengths):
                seen[row, : front.length - length] = 0
            inputs["attention_mask"] = seen
        return inputs

    def _call(
        self, inputs: dict[str, Tensor | None], cache: Cache, outputs: Sequence[tuple[int, int]], *, hidden: bool
    ) -> Tensor:
        """Logits ``[K, vocab]`` or hidden states ``[K, hidden]`` at ``outputs``."""
        rows, columns = (torch.tensor([o[side] for o in outputs], device=self.device).long() for side in (0, 1))
        kept = {"use_cache": True, cache_argument(self.model): cache}
        with _saved_before_writing(cache):
            if hidden:
                return model_body(self.model)(**inputs, **kept).last_hidden_state[rows, columns]
            return logits_at(self.model, {**inputs, **kept}, rows, columns)

    def _fill(self, front: Kept) -> Cache:
        """The model's cache with what stands in front of the rows."""
        cache = _empty_cache(self.model, self.layout.first)
        for slot in self.layout.slots:
            layer: Any = cache.layers[slot.layer]
            shape = self.layout.shapes[slot.slot]
            if front.length and shape.kv_heads:
                layer.put(front.keys[slot.slot].to(self.dtype), front.values[slot.slot].to(self.dtype), front.room)
            if front.length and slot.index_slot is not None:
                layer.put_index(front.keys[slot.index_slot][:, 0, : front.length].to(self.dtype))
                layer.put_positions(self._positions(front))
            dtypes = self.layout.state_dtypes[slot.slot]
            states = {name: state.to(dtypes[name]) for name, state in front.states[slot.slot].items()}
            if LINEAR_CACHE in states:
                getattr(cache, LINEAR_CACHE)[slot.layer] = states[LINEAR_CACHE]
            elif states:
                layer.put_states(states)
        return cache

    def _positions(self, front: Kept) -> Tensor:
        """``[R, C]`` positions of what stands in front of the rows; 0 in the holes before it."""
        columns = torch.arange(front.length, device=self.device)
        first = torch.tensor([front.length - length for length in front.lengths], device=self.device)
        return (columns - first[:, None]).clamp_min(0)

    def _read(self, cache: Cache, front: Kept, lengths: Sequence[int]) -> Kept:
        """What the rows' own tokens have left in the cache."""
        found = kept_tensors(cache, self.layout.slots)
        own = slice(front.length, front.length + max(lengths))
        empty = torch.empty(len(lengths), 0, max(lengths), 0, dtype=self.dtype, device=self.device)
        return Kept(
            tuple(lengths),
            tuple(key[:, :, own] if key is not None else empty for key, _, _ in found),
            tuple(value[:, :, own] if value is not None else empty for _, value, _ in found),
            tuple(states for _, _, states in found),
        )


@contextmanager
def _saved_before_writing(cache: Cache) -> Iterator[None]:
    """Let gradients pass states that a layer writes in place, as some do for a single token."""
    if not torch.is_grad_enabled():
        yield
        return
    layers = [layer for layer in cache.layers if isinstance(layer, StatesLayer)]
    written = {s.untyped_storage().data_ptr() for layer in layers for s in layer.states().values()}
    save = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.clone() if tensor.untyped_storage().data_ptr() in written else tensor, lambda saved: saved
    )
    with save if written else nullcontext():
        yield


LayerTensors = tuple[Tensor | None, Tensor | None, dict[str, Tensor]]
"""Keys and values ``[R, kv_heads, C, dim]`` of a layer, ``None`` if it does not attend, and states ``[R, ...]``."""


def kept_tensors(cache: Cache, slots: Sequence[CacheSlot]) -> list[LayerTensors]:
    """What every layer of an identity keeps, in its order."""
    found: list[LayerTensors] = []
    for slot in slots:
        layer = cache.layers[slot.layer]
        states = layer.states() if isinstance(layer, StatesLayer) else {}
        if (beside := getattr(cache, LINEAR_CACHE, {slot.layer: None})[slot.layer]) is not None:
            states = {LINEAR_CACHE: beside}
        if isinstance(layer, KeysLayer) and layer.is_initialized:
            found.append((layer.keys, layer.values, states))
        else:
            found.append((None, None, states))
        if isinstance(layer, IndexedKeysLayer) and layer.indexer_keys is not None:
            key = layer.indexer_keys[:, None]
            found.append((key, key[..., :0], {}))
    return found


@torch.no_grad()
def cache_layout(model: Any) -> CacheLayout:
    """The layers of a model's cache, found by running a few tokens.

    Raises UnsupportedModel for a model that leaves nothing in a cache of Transformers'.
    """
    name = type(model).__name__
    first = first_states(model)
    cache = _empty_cache(model, first)
    ids = torch.arange(DISCOVERY_TOKENS, device=model.device)[None]
    model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    slots: list[CacheSlot] = []
    count = 0
    for index, layer in enumerate(cache.layers):
        attends = isinstance(layer, KeysLayer) and layer.is_initialized
        indexes = isinstance(layer, IndexedKeysLayer) and layer.is_indexer_initialized
        beside = getattr(cache, LINEAR_CACHE, {index: None})[index] is not None
        if attends or beside or (isinstance(layer, StatesLayer) and layer.states()):
            slots.append(CacheSlot(index, count, count + 1 if indexes else None))
            count += 2 if indexes else 1
    if not slots:
        raise UnsupportedModel(
            f"{name} leaves nothing of a text in a cache, so nothing can stand in front of a request."
        )
    found = kept_tensors(cache, slots)
    return CacheLayout(
        tuple(slots),
        tuple(
            LayerShape(
                key.shape[1] if key is not None else 0,
                key.shape[-1] if key is not None else 0,
                value.shape[-1] if value is not None else 0,
                tuple(StateShape(name, tuple(state.shape[1:])) for name, state in states.items()),
            )
            for key, value, states in found
        ),
        tuple({name: state.dtype for name, state in states.items()} for _, _, states in found),
        first,
    )


def _empty_cache(model: Any, first: tuple[dict[str, Tensor], ...]) -> Cache:
    return StackedStates(first) if first else make_cache(model)


def cache_argument(model: Any) -> str:
    """What a model calls the cache that it takes. Raises UnsupportedModel if it takes none."""
    known = signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    if (stacked := stacked_states_argument(model)) is not None:
        return stacked
    raise UnsupportedModel(
        f"{type(model).__name__} takes no cache of Transformers', so nothing can stand in front of a request."
    )
