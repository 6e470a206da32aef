"""`KVPrefix`: what all layers keep of the front of a text, which every prompt is lowered to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from foreword.core.identity import ModelIdentity, describe_layers
from foreword.core.overview import Overview, WithOverview
from foreword.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch


Bos = Literal["prefix", "request", "none"]

MAX_POSITIONS = 2**31 - 1
"""Bound of every position: engines count them in 32 bits."""


@dataclass(frozen=True, eq=False, repr=False)
class KVPrefix(WithOverview):
    """What all layers keep of ``P`` positions (``past_key_values``), which every prompt is lowered to: keys and values
    where a layer attends, states where it recurs or convolves.

    >>> prefix = foreword.Bank().load("mood").prefix
    >>> prefix.keys[0].shape[1] == prefix.length
    True

    Tensors are PyTorch's, or numpy arrays where the bank was opened for an engine that runs without it.

    Attributes:
        model: identity of the model that the tensors belong to.
        keys: one ``[kv_heads, P, key_dim]`` a layer, already rotated to positions ``0..P-1``; a layer that does not
            attend has no heads.
        values: one ``[kv_heads, P, value_dim]`` a layer.
        offset: position of the request's first token (``P`` for every causal model).
        token_ids: the ``P`` token ids of a static prefix; ``None`` for a learned one, which is never sliced.
        bos: whether the beginning-of-text token is inside the prefix, is put in front of the request, or is
            not used at all.
        source: where a bank keeps it, as `Bank.prefix` takes it; empty for one that was never stored. Engines in
            other processes read it there, and hold it against its digest.
        states: of every layer the states behind the last position, by name; empty if no layer keeps any.
    """

    model: ModelIdentity
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    offset: int
    token_ids: tuple[int, ...] | None = None
    bos: Bos = "request"
    source: str = ""
    states: tuple[Mapping[str, torch.Tensor], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.offset, int) or not 0 <= self.offset <= MAX_POSITIONS:
            raise UsageError(
                f"the offset of a prefix must be a position from 0 to {MAX_POSITIONS}, found {str(self.offset)[:40]}; "
                "give its length."
            )
        if not self.keys or len(self.keys) != len(self.model.layers) or len(self.values) != len(self.model.layers):
            raise UsageError(
                f"a prefix for {self.model.architecture} needs {len(self.model.layers)} layers, got "
                f"{len(self.keys)} keys and {len(self.values)} values."
            )
        for index, (shape, key, value) in enumerate(zip(self.model.layers, self.keys, self.values, strict=True)):
            expected_key = (shape.kv_heads, self.length, shape.key_dim)
            expected_value = (shape.kv_heads, self.length, shape.value_dim)
            if tuple(key.shape) != expected_key or tuple(value.shape) != expected_value:
                raise UsageError(
                    f"layer {index} of the prefix must be keys {expected_key} and values {expected_value}, got "
                    f"{tuple(key.shape)} and {tuple(value.shape)}."
                )
        if len({tensor.dtype for tensor in (*self.keys, *self.values)}) > 1:
            raise UsageError("keys and values of a prefix must share one dtype; convert them first.")
        self._check_states()
        if self.token_ids is not None and len(self.token_ids) != self.length:
            raise UsageError(f"a static prefix of {self.length} positions has {len(self.token_ids)} token ids.")

    def _check_states(self) -> None:
        if self.model.keeps_states and self.length and not self.states:
            raise UsageError(f"a prefix for {self.model.architecture} needs the states of its layers, got none.")
        if not self.states:
            return
        if len(self.states) != len(self.model.layers):
            raise UsageError(
                f"a prefix for {self.model.architecture} needs the states of {len(self.model.layers)} layers, got "
                f"{len(self.states)}."
            )
        for index, (layer, states) in enumerate(zip(self.model.layers, self.states, strict=True)):
            expected = {state.name: state.shape for state in layer.states}
            found = {name: tuple(state.shape) for name, state in states.items()}
            if found != expected:
                raise UsageError(f"layer {index} of the prefix must have the states {expected}, got {found}.")

    @property
    def length(self) -> int:
        """``P``, the number of positions."""
        return int(self.keys[0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; none of those on the meta device, which have no values."""
        return sum(t.nbytes for t in self.tensors if not getattr(t, "is_meta", False))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All keys, then all values, then all states, each in the order of the layers."""
        states = [state for layer in self.states for state in layer.values()]
        return (*self.keys, *self.values, *states)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that changes what a request would see: geometry, token ids and values."""
        header = [
            self.offset,
            self.token_ids,
            self.bos,
            self.model.to_json(),
            [_dtype(key) for key in self.keys],
        ]
        if self.states:
            header.append([_dtype(state) for layer in self.states for state in layer.values()])
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for tensor in self.tensors:
            digest.update(_stored_bytes(tensor))
        return digest.hexdigest()

    def overview(self) -> Overview:
        """Its model, positions and size; no values."""
        dtype = str(self.keys[0].dtype).removeprefix("torch.")
        return Overview(
            f"KVPrefix of {self.length} positions",
            {
                "model": f"{self.model.architecture}, {describe_layers(self.model.layers)}",
                "weights": self.model.weights[:12],
                "size": f"{self.nbytes:,} bytes, {dtype}",
                "kind": "learned" if self.token_ids is None else "static",
                "source": self.source,
            },
        )

    def head(self, length: int) -> KVPrefix:
        """The first ``length`` positions of a static prefix: keys are causal, so a slice is exact.

        Raises:
            UsageError: a learned prefix is never sliced, nor one with states, which are those behind its last position.
        """
        if length == self.length:
            return self
        if self.states:
            raise UsageError(f"a prefix with states of {self.length} positions cannot be cut to {length}.")
        if self.token_ids is None:
            raise UsageError(f"a learned prefix of {self.length} positions cannot be cut to {length}.")
        keys = tuple(key[:, :length] for key in self.keys)
        values = tuple(value[:, :length] for value in self.values)
        return KVPrefix(self.model, keys, values, length, self.token_ids[:length], self.bos, self.source)

    @property
    def min_length(self) -> int:
        """The fewest of its positions that can serve a request: one of a text's keys, else all."""
        return 1 if self.token_ids is not None and not self.states else self.length

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> KVPrefix:
        """The same prefix with its keys and values in another dtype, and all tensors on another device; itself if
        nothing changes. States keep their dtype, in which a layer adds up many small steps."""
        moved = self.map(lambda tensor: tensor.to(dtype=dtype, device=device), lambda state: state.to(device=device))
        return self if all(a is b for a, b in zip(moved.tensors, self.tensors, strict=True)) else moved

    def map(
        self,
        change: Callable[[torch.Tensor], torch.Tensor],
        change_state: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> KVPrefix:
        """The same prefix with every tensor changed; states by ``change_state`` if it is given."""
        change_state = change_state or change
        return replace(
            self,
            keys=tuple(map(change, self.keys)),
            values=tuple(map(change, self.values)),
            states=tuple({name: change_state(state) for name, state in layer.items()} for layer in self.states),
        )


def _dtype(tensor: torch.Tensor) -> str:
    return f"torch.{str(tensor.dtype).removeprefix('torch.')}"


def _stored_bytes(tensor: torch.Tensor | np.ndarray) -> memoryview:
    import numpy as np

    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
