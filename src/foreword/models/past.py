"""`Past`: what stands in front of the sequences of a batch, for a model that is run through Transformers' cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Batch, KVPrefix, ModelIdentity


@dataclass(frozen=True)
class Kept:
    """What all layers keep of ``R`` rows, as a model's cache takes it and gives it back.

    Attributes:
        lengths: positions of every row, ``C`` at most.
        keys: one ``[R, kv_heads, C, key_dim]`` a layer; shorter rows stand at the end, behind zeros.
        values: one ``[R, kv_heads, C, value_dim]`` a layer.
        states: of every layer ``[R, ...]`` by name; empty mappings for rows that have nothing in front of them.
        room: columns behind these ``C`` in keys and values, which the rows' own tokens are written to.
    """

    lengths: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    states: tuple[Mapping[str, Tensor], ...]
    room: int = 0

    @property
    def length(self) -> int:
        """``C``."""
        return max(self.lengths)


class Past(Protocol):
    """What the sequences of one batch have in front of their tokens, and where what they leave behind goes."""

    def length(self, sequence: int) -> int:
        """Positions in front of a sequence's tokens."""
        ...

    def keeps(self, sequence: int) -> bool:
        """Whether what a sequence leaves behind is needed."""
        ...

    def gather(self, sequences: Sequence[int], room: int) -> Kept:
        """What is in front of some sequences, as rows; they have states all or none.

        Args:
            room: tokens of the longest of them; there may be as much room behind, or none.
        """
        ...

    def store(self, sequences: Sequence[int], new: Kept) -> None:
        """Take the keys and values of the sequences' own tokens, which stand at the beginning of every row here, and
        the states behind them."""
        ...


class BatchPast:
    """Prefixes and parents within one batch, differentiable in all of them.

    Args:
        batch: its sequences that have children are kept.
        model: identity of the model that runs it.
        keep: further sequences whose keys, values and states are wanted, see `kept`.
    """

    def __init__(self, batch: Batch, model: ModelIdentity, keep: Sequence[int] = ()) -> None:
        self._batch, self._model = batch, model
        self._needed = {parent for parent in batch.parents if parent is not None} | set(keep)
        self.kept: dict[int, KVPrefix] = {}

    def length(self, sequence: int) -> int:
        front = self._front(sequence)
        return front.length if front is not None else 0

    def keeps(self, sequence: int) -> bool:
        return sequence in self._needed

    def gather(self, sequences: Sequence[int], room: int) -> Kept:
        fronts = [self._front(sequence) for sequence in sequences]
        lengths = tuple(front.length if front is not None else 0 for front in fronts)
        layers = range(len(self._model.layers))
        keys = tuple(self._pad(fronts, layer, lengths, "keys") for layer in layers)
        values = tuple(self._pad(fronts, layer, lengths, "values") for layer in layers)
        return Kept(lengths, keys, values, tuple(_stack_states(fronts, layer) for layer in layers))

    def store(self, sequences: Sequence[int], new: Kept) -> None:
        for row, sequence in enumerate(sequences):
            if not self.keeps(sequence):
                continue
            own, front = new.lengths[row], self._front(sequence)
            keys, values = ([each[row, :, :own] for each in side] for side in (new.keys, new.values))
            states = tuple({name: state[row] for name, state in layer.items()} for layer in new.states)
            self.kept[sequence] = append_keys_values(self._model, front, keys, values, states)

    def _front(self, sequence: int) -> KVPrefix | None:
        parent = self._batch.parents[sequence]
        front = self.kept[parent] if parent is not None else self._batch.prefixes[sequence]
        return front if front is not None and front.length else None

    def _pad(self, fronts: Sequence[KVPrefix | None], layer: int, lengths: Sequence[int], side: str) -> Tensor:
        """``[R, kv_heads, C, dim]``; one front that all rows share is not copied."""
        longest, shape = max(lengths), self._model.layers[layer]
        dim = shape.key_dim if side == "keys" else shape.value_dim
        if fronts[0] is not None and all(front is fronts[0] for front in fronts):
            return getattr(fronts[0], side)[layer].expand(len(fronts), -1, -1, -1)
        rows = []
        for front, length in zip(fronts, lengths, strict=True):
            own = getattr(front, side)[layer] if front is not None else torch.zeros(shape.kv_heads, 0, dim)
            rows.append(F.pad(own.to(self._batch.token_ids.device), (0, 0, longest - length, 0)))
        return torch.stack(rows)


def _stack_states(fronts: Sequence[KVPrefix | None], layer: int) -> dict[str, Tensor]:
    """States ``[R, ...]`` of a layer; rows are copied, since a layer may write to them."""
    known = [front.states[layer] for front in fronts if front is not None and front.states]
    assert len(known) in (0, len(fronts)), "rows with and without states cannot be one batch"
    return {name: torch.stack([states[name] for states in known]) for name in (known[0] if known else ())}


def append_keys_values(
    model: ModelIdentity,
    past: KVPrefix | None,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]] = (),
) -> KVPrefix:
    """A prefix of ``past``, if there is one, with keys and values behind it, and the states there."""
    if past is not None and past.length:
        keys = [torch.cat([a.to(b), b], dim=1) for a, b in zip(past.keys, keys, strict=True)]
        values = [torch.cat([a.to(b), b], dim=1) for a, b in zip(past.values, values, strict=True)]
    kept = tuple(states) if model.keeps_states else ()
    return KVPrefix(model, tuple(keys), tuple(values), offset=keys[0].shape[1], states=kept)
