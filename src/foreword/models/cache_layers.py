"""Layers of Transformers' `Cache` that keep what gradients need, and everything a layer has seen.

The stock layers write their states in place, which cuts gradients, and drop keys that a sliding window has left behind,
so that rows of different lengths would no longer line up; the masks alone decide here what a query sees.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from foreword.errors import UnsupportedModel

POSITION_DIMS = 3


class KeysLayer(DynamicLayer):
    """Keys and values of all positions."""

    _buffers: tuple[Tensor, Tensor] | None = None

    def put(self, key: Tensor, value: Tensor, room: int = 0) -> None:
        """Begin with keys ``[R, kv_heads, C, key_dim]`` and values ``[R, kv_heads, C, value_dim]``.

        Args:
            room: columns at their end that hold nothing yet and are written to; 0 where gradients are needed.
        """
        self.lazy_initialization(key, value)
        self._buffers = (key, value) if room else None
        length = key.shape[2] - room
        self.keys, self.values = key[:, :, :length], value[:, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


class IndexedKeysLayer(DynamicIndexedLayer, KeysLayer):
    """Keys and values, and the keys of an indexer that chooses among them (DeepSeek sparse attention)."""

    def put_index(self, key: Tensor) -> None:
        """Begin with index keys ``[R, C, dim]``."""
        self.lazy_initialization_indexer(key)
        self.indexer_keys = key

    def put_positions(self, positions: Tensor) -> None:
        """Begin with the positions ``[R, C]`` of these keys."""
        # One row for each of the dimensions that M-RoPE turns by; text has the same in all of them.
        self.indexer_position_ids = positions.expand(POSITION_DIMS, -1, -1)


class StatesLayer(LinearAttentionLayer):
    """States of a layer that recurs or convolves; every update makes new tensors."""

    def put_states(self, states: dict[str, Tensor]) -> None:
        """Begin with states ``[R, ...]`` by the names that `states` gives."""
        for name, state in states.items():
            kind, _, number = name.partition(".")
            getattr(self, kind)[int(number)] = state
            getattr(self, f"is_{kind}_initialized")[int(number)] = True
            if kind == "conv_states":
                self.conv_kernel_size[int(number)] = state.shape[-1]
            self.dtype, self.device = state.dtype, state.device
        for number in range(self.number_of_states):
            self.has_previous_state[number] = True

    def states(self) -> dict[str, Tensor]:
        """The states ``[R, ...]`` as they are now: ``conv_states.0``, ``recurrent_states.0`` and so on."""
        named = (("conv_states", self.conv_states), ("recurrent_states", self.recurrent_states))
        return {f"{k}.{n}": state for k, found in named for n, state in sorted(found.items()) if state is not None}

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        before = self.conv_states[state_idx] if self.has_previous_state[state_idx] else None
        if before is not None:
            kernel = before.shape[-1]
            full = torch.cat([before, conv_states], dim=-1)
        else:
            kernel = conv_kernel_size or conv_states.shape[-1]
            self.conv_kernel_size[state_idx] = kernel
            self.dtype, self.device = conv_states.dtype, conv_states.device
            full = F.pad(conv_states, (max(0, kernel - conv_states.shape[-1]), 0))
            self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        self.conv_states[state_idx] = full[..., -kernel:]
        return full

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.is_recurrent_states_initialized[state_idx] = True
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class KeysAndStatesLayer(StatesLayer, LinearAttentionAndFullAttentionLayer, KeysLayer):
    """Both of a layer that attends and recurs (Falcon-H1)."""

    def __init__(self, number_of_states: int = 1) -> None:
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states=number_of_states)


def make_cache(model: Any) -> Cache:
    """An empty cache with a layer of ours for each of a model's. Raises UnsupportedModel for one of another kind."""
    config = model.config.get_text_config(decoder=True)
    layers = [_own_layer(layer, config) for layer in DynamicCache(config=config).layers]
    module = sys.modules[type(model).__module__]
    own = [each for each in vars(module).values() if _is_cache_of(each, module.__name__)]
    if not own:
        return Cache(layers=layers)
    cache = own[0]()  # the model takes no other
    cache.layers = layers
    if hasattr(cache, LINEAR_CACHE):
        setattr(cache, LINEAR_CACHE, [None] * len(layers))
    return cache


LINEAR_CACHE = "linear_cache"
"""Where a cache keeps one state a layer beside its layers (MiniMax)."""


def _is_cache_of(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, DynamicCache) and value.__module__ == module


def _own_layer(stock: Any, config: Any) -> Any:
    attends, recurs = isinstance(stock, CacheLayerMixin), isinstance(stock, LinearAttentionCacheLayerMixin)
    if attends and recurs:
        return KeysAndStatesLayer(stock.number_of_states)
    if recurs:
        return StatesLayer(stock.number_of_states)
    if isinstance(stock, DynamicIndexedLayer):
        return IndexedKeysLayer()
    if not attends:
        return stock  # a layer without attention, or one that reads another's keys
    if type(stock).__module__ != DynamicLayer.__module__:
        raise UnsupportedModel(
            f"{type(config).__name__} keeps a text in a {type(stock).__name__}, whose parts are neither keys and "
            "values of every position nor states, so nothing can be put in front of a request."
        )
    return KeysLayer()
