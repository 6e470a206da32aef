"""`KVPrefix`: keys and values of all layers, which every prompt is lowered to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from foreword.core.identity import ModelIdentity
from foreword.core.overview import Overview, WithOverview
from foreword.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch


Bos = Literal["prefix", "request", "none"]


@dataclass(frozen=True, eq=False, repr=False)
class KVPrefix(WithOverview):
    """Keys and values of all layers for ``P`` positions (``past_key_values``), which every prompt is lowered to.

    >>> prefix = foreword.Bank().load("mood").prefix
    >>> prefix.keys[0].shape[1] == prefix.length
    True

    Tensors are PyTorch's, or numpy arrays where the bank was opened for an engine that runs without it.

    Attributes:
        model: identity of the model that the tensors belong to.
        keys: one ``[kv_heads, P, key_dim]`` a layer, already rotated to positions ``0..P-1``.
        values: one ``[kv_heads, P, value_dim]`` a layer.
        offset: position of the request's first token (``P`` for every causal model).
        token_ids: the ``P`` token ids of a static prefix; ``None`` for a learned one, which is never sliced.
        bos: whether the beginning-of-text token is inside the prefix, is put in front of the request, or is
            not used at all.
        source: where a bank keeps it, as `Bank.prefix` takes it; empty for one that was never stored. Engines in
            other processes read it there, and hold it against its digest.
    """

    model: ModelIdentity
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    offset: int
    token_ids: tuple[int, ...] | None = None
    bos: Bos = "request"
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.model.layers) or len(self.values) != len(self.model.layers):
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
        if self.token_ids is not None and len(self.token_ids) != self.length:
            raise UsageError(f"a static prefix of {self.length} positions has {len(self.token_ids)} token ids.")

    @property
    def length(self) -> int:
        """``P``, the number of positions."""
        return int(self.keys[0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all key and value tensors; none of those on the meta device, which have no values."""
        return sum(t.nbytes for t in (*self.keys, *self.values) if not getattr(t, "is_meta", False))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that changes what a request would see: geometry, token ids and values."""
        header = [
            self.offset,
            self.token_ids,
            self.bos,
            self.model.to_json(),
            [f"torch.{str(k.dtype).removeprefix('torch.')}" for k in self.keys],
        ]
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for tensor in (*self.keys, *self.values):
            digest.update(_stored_bytes(tensor))
        return digest.hexdigest()

    def overview(self) -> Overview:
        """Its model, positions and size; no values."""
        dtype = str(self.keys[0].dtype).removeprefix("torch.")
        return Overview(
            f"KVPrefix of {self.length} positions",
            {
                "model": f"{self.model.architecture}, {len(self.keys)} layers, weights {self.model.weights[:12]}",
                "size": f"{self.nbytes:,} bytes, {dtype}",
                "kind": "learned" if self.token_ids is None else "static",
                "source": self.source,
            },
        )

    def head(self, length: int) -> KVPrefix:
        """The first ``length`` positions of a static prefix: keys are causal, so a slice is exact.

        Raises:
            UsageError: a learned prefix is never sliced.
        """
        if length == self.length:
            return self
        if self.token_ids is None:
            raise UsageError(f"a learned prefix of {self.length} positions cannot be cut to {length}.")
        keys = tuple(key[:, :length] for key in self.keys)
        values = tuple(value[:, :length] for value in self.values)
        return KVPrefix(self.model, keys, values, length, self.token_ids[:length], self.bos, self.source)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> KVPrefix:
        """The same prefix with its tensors in another dtype or on another device; itself if nothing changes."""
        keys = tuple(k.to(dtype=dtype, device=device) for k in self.keys)
        values = tuple(v.to(dtype=dtype, device=device) for v in self.values)
        if all(new is old for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True)):
            return self
        return KVPrefix(self.model, keys, values, self.offset, self.token_ids, self.bos, self.source)


def _stored_bytes(tensor: torch.Tensor | np.ndarray) -> memoryview:
    import numpy as np

    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
