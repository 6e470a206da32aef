"""`StackedStates`: the cache of a model that takes its states as a list of tensors, each of all layers (RWKV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foreword.models.cache_layers import StatesLayer


class StackedStates(Cache):
    """Stands for the list of tensors ``[R, ..., layers]``, and keeps the states of every layer apart: what is written
    in place passes no gradients.

    Args:
        first: by layer, its states ``[1, ...]`` before any token.
    """

    def __init__(self, first: Sequence[Mapping[str, Tensor]]) -> None:
        layers: list[Any] = [StatesLayer(len(states)) for states in first]
        for layer, states in zip(layers, first, strict=True):
            layer.put_states(dict(states))
        super().__init__(layers=layers)
        self._list = [_StateOfLayers(layers, number) for number in range(len(first[0]))]

    def __getitem__(self, index: Any) -> Any:
        return self._list[index]


@dataclass(frozen=True)
class _StateOfLayers:
    """Stands for one tensor ``[R, ..., layers]`` that is read and written at one index of its last dimension."""

    layers: Sequence[StatesLayer]
    number: int

    def __getitem__(self, at: tuple[Any, ...]) -> Tensor:
        state = self.layers[at[-1]].recurrent_states[self.number]
        assert state is not None
        return state

    def __setitem__(self, at: tuple[Any, ...], state: Tensor) -> None:
        self.layers[at[-1]].update_recurrent_state(state.to(self[at].dtype), self.number)


def stacked_states_argument(model: Any) -> str | None:
    """What a model calls the list of states that it takes; ``None`` if it takes none."""
    known = signature(model.forward).parameters.items()
    return next((name for name, found in known if found.annotation == list[Tensor] | None), None)


def first_states(model: Any) -> tuple[dict[str, Tensor], ...]:
    """By layer, the states ``[1, ...]`` that a model gives its modules before any token; none if it takes no list."""
    argument = stacked_states_argument(model)
    given: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not given:
            given.extend(state.clone() for state in kwargs.get(str(argument)) or ())

    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in model.modules()] if argument else []
    try:
        if argument:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    layers = range(given[0].shape[-1]) if given else ()
    return tuple({f"recurrent_states.{n}": state[..., layer] for n, state in enumerate(given)} for layer in layers)
