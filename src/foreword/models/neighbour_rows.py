"""`NeighbourRows`: layers that read the rows beside a token themselves, by a convolution beside or before attention.

Behind a prefix such a layer needs more of the rows in front than keys and values: their inputs, as far as it reaches.
They are what the layer keeps as a state (`foreword.core.StateShape`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from foreword.adapters import first_tensor, with_first_tensor
from foreword.core import StateShape
from foreword.errors import UnsupportedModel
from foreword.models.language_model import model_body
from foreword.models.projections import KeysValuesAt, ProjectionHooks

INPUTS, EMBEDDINGS = "inputs", "embeddings"


@dataclass(frozen=True, eq=False)
class RowsAt:
    """States ``[K, width]`` for the places ``rows [K]``, ``columns [K]`` of padded rows; gradients flow into them."""

    rows: Tensor
    columns: Tensor
    states: Tensor

    def put(self, padded: Tensor) -> Tensor:
        """``padded [R, S, width]`` with the states at their places."""
        return padded.index_put((self.rows, self.columns), self.states.to(padded.dtype))


@dataclass(frozen=True, eq=False)
class NeighbourRows:
    """How far the layers of a model read beside their attention.

    Attributes:
        states: what each layer keeps of the last rows in front: ``inputs`` ``[reach, width]`` of its attention module,
            and the first layer ``embeddings`` ``[reach, width]``, where these are mixed before any layer.
    """

    states: tuple[tuple[StateShape, ...], ...]
    _modules: tuple[nn.Module, ...]

    @classmethod
    def find(cls, model: Any, hooks: ProjectionHooks, ids: Tensor) -> NeighbourRows:
        """Hold all keys and values of ``ids [T]`` and follow what else reaches the last row.

        Raises UnsupportedModel for a layer that reads the inputs of all rows, or one of several that share a module.
        """
        body, names = model_body(model), [layer.attention for layer in hooks.layers]
        modules = tuple(model.get_submodule(name) for name in names)
        columns = torch.arange(len(ids), device=ids.device)
        kept: dict[int, KeysValuesAt] = {}

        def keep(layer: int, key: Tensor, value: Tensor) -> None:
            kept[layer] = KeysValuesAt(torch.zeros_like(columns), columns, key[0, : len(ids)], value[0, : len(ids)])

        with torch.no_grad(), hooks.replaced({}, keep):
            body(input_ids=ids[None])
        table, looked_up = model.get_input_embeddings(), list[Tensor]()
        entered: dict[nn.Module, Tensor] = {}
        reaches: dict[nn.Module, StateShape] = {}
        mixed: list[StateShape] = []

        def look_up(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            looked_up.append(first_tensor(output).detach().requires_grad_())
            return with_first_tensor(output, looked_up[-1].clone())

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            def cut(states: Tensor) -> Tensor:
                if module is modules[0] and module not in entered and _takes_embeds(body):
                    mixed.append(_state(EMBEDDINGS, states, looked_up[0], len(ids)))
                entered[module] = states.detach().requires_grad_()
                return entered[module]

            return _with_inputs(args, kwargs, cut)

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            while not isinstance(output, Tensor):
                output = next(iter(output.values() if isinstance(output, Mapping) else output))
            reaches[module] = _state(INPUTS, output, entered[module], len(ids))

        with torch.enable_grad(), hooks.replaced(kept), ExitStack() as handles:
            handles.callback(table.register_forward_hook(look_up).remove)
            for module in set(modules):
                handles.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                handles.callback(module.register_forward_hook(leave).remove)
            body(input_ids=ids[None])
        for name, module in zip(names, modules, strict=True):
            reach = reaches[module].shape[0]
            if reach and (modules.count(module) > 1 or reach >= len(ids) - 1):
                raise UnsupportedModel(
                    f"{type(model).__name__} reads in {name} the inputs of other rows beside their keys and values, "
                    f"{reach} rows away or more, so a row sees more of the rows in front than a prefix holds."
                )
        found = [[reaches[module]] for module in modules]
        found[0] += mixed
        return cls(tuple(tuple(state for state in layer if state.shape[0]) for layer in found), modules)

    @contextmanager
    def replaced(
        self, places: Mapping[int, RowsAt], record: Callable[[int, Tensor], None] | None = None
    ) -> Iterator[None]:
        """Replace inputs of layers in the forward inside the block, and record them ``[R, S, width]`` afterwards."""

        def hook(layer: int) -> Callable[..., tuple[Any, Any]]:
            def change(states: Tensor) -> Tensor:
                states = places[layer].put(states) if layer in places else states
                if record is not None:
                    record(layer, states)
                return states

            return lambda _, args, kwargs: _with_inputs(args, kwargs, change)

        with ExitStack() as handles:
            for layer, (states, module) in enumerate(zip(self.states, self._modules, strict=True)):
                if any(state.name == INPUTS for state in states):
                    handles.callback(module.register_forward_pre_hook(hook(layer), with_kwargs=True).remove)
            yield


def _takes_embeds(body: Any) -> bool:
    known = signature(body.forward).parameters
    return "inputs_embeds" in known and known["input_ids"].default is None


def _with_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an attention module with its hidden states changed."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor) and value.dim() == 3)
    return args, {**kwargs, name: change(kwargs[name])}


def _state(name: str, output: Tensor, inputs: Tensor, count: int) -> StateShape:
    """How many of ``count`` rows before the last one its output reads of the inputs, and how wide these are."""
    last = _tokens_first(output, count)[:, count - 1]
    (read,) = torch.autograd.grad(last.float().square().sum(), inputs, allow_unused=True)
    width = _tokens_first(inputs, count).shape[-1]
    if read is None or _tokens_first(inputs, count).shape[1] < count:  # no rows of tokens, of which nothing is known
        return StateShape(name, (0, width))
    read = _tokens_first(read, count)[0, : count - 1].abs().amax(dim=-1).nonzero()
    return StateShape(name, (count - 1 - int(read[0]) if len(read) else 0, width))


def _tokens_first(states: Tensor, count: int) -> Tensor:
    """``[R, S, width]``, of states that are so already, maybe with rows of padding, or ``[R, width, S]``."""
    return states.transpose(1, 2) if states.shape[1] != count == states.shape[2] else states
