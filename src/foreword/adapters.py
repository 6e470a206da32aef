"""Low-rank adapters on a frozen model: every token of a ragged batch may go through another one, or through none.

`LanguageModel` calls this once a forward. Training, lowering and the engine share it, so that what is learned is what
is served; the model's own weights are never touched.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foreword.core import Adapter, Batch
from foreword.errors import ModelMismatch, UnsupportedModel

_KEPT = "_foreword_adapters"


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """``(in, out)`` widths of every linear layer that an adapter can change, by module name; not the output matrix."""
    find = getattr(model, "get_output_embeddings", None)
    output = find() if callable(find) else None
    widths: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if module is output:
            continue
        if isinstance(module, nn.Linear):
            widths[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            widths[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return widths


def check_adapter(adapter: Adapter, model: nn.Module, what: str) -> None:
    """Raise `ModelMismatch` unless every change fits a linear layer of the model.

    Args:
        what: how to name the adapter in the error, such as ``task 'sst2'``.
    """
    widths = linear_layers(model)
    for name, pair in adapter.layers.items():
        if name not in widths:
            raise ModelMismatch(
                f"{what} changes the layer {name}, which {type(model).__name__} has not; load the model it was made "
                "for."
            )
        found = (int(pair.down.shape[1]), int(pair.up.shape[0]))
        if found != widths[name] or pair.down.shape[0] != pair.up.shape[1]:
            raise ModelMismatch(
                f"{what} changes {name} from {found[0]} to {found[1]} numbers, the model's has {widths[name][0]} and "
                f"{widths[name][1]}; load the model it was made for."
            )


class AdapterLayers:
    """The linear layers of one model, and what is added to their output in the forward that runs now.

    A hook goes on a layer when an adapter first changes it, and reads what `use` has set. Where gradients are recorded
    it stays set until the next forward, since checkpointing runs layers again during the backward pass. A model has one
    of these, whoever wraps it (`of`): what one wrapper left behind must not change the forward of another.
    """

    @classmethod
    def of(cls, model: nn.Module) -> AdapterLayers:
        """The one of a model, which keeps it."""
        known = vars(model).get(_KEPT)
        if known is None:
            known = cls(model)
            setattr(model, _KEPT, known)
        return known

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._hooked: set[str] = set()
        self._active: list[tuple[Adapter, Tensor | None]] = []
        self._tokens = 0
        self._met: set[str] = set()

    def use(self, batch: Batch) -> None:
        """Set what the next forward adds: one entry for every adapter of the batch, with the tokens it belongs to."""
        self._active, self._met = [], set()
        self._tokens = batch.starts[-1]
        if batch.adapters is None or all(adapter is None for adapter in batch.adapters):
            return
        for adapter in dict.fromkeys(batch.adapters):
            if adapter is not None:
                self._hook(adapter)
                self._active.append((adapter, _tokens_of(adapter, batch)))

    def clear(self) -> None:
        """Nothing is added any more."""
        self._active = []

    def check_met(self, name: str) -> None:
        """Raise UnsupportedModel unless every changed layer ran as a module in the forward that just ended."""
        wanted = {layer for adapter, _ in self._active for layer in adapter.layers}
        if missing := sorted(wanted - self._met):
            raise UnsupportedModel(
                f"{name} does not run its layer {missing[0]} as a module, so an adapter on it would be lost; publish a "
                "task without an adapter for this model."
            )

    def _hook(self, adapter: Adapter) -> None:
        new = [layer for layer in adapter.layers if layer not in self._hooked]
        if new:
            check_adapter(adapter, self._model, "the adapter")
        for layer in new:
            self._modules[layer].register_forward_hook(partial(self._add, layer))
            self._hooked.add(layer)

    def _add(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for adapter, tokens in self._active:
            pair = adapter.layers.get(layer)
            if pair is None:
                continue
            self._met.add(layer)
            output = self._changed(layer, inputs[0], output, pair.down, pair.up, adapter.scale, tokens)
        return output

    def _changed(
        self, layer: str, x: Tensor, output: Tensor, down: Tensor, up: Tensor, scale: float, tokens: Tensor | None
    ) -> Tensor:
        if tokens is None:
            return output + scale * F.linear(F.linear(x, down), up)
        if x.shape[:-1] != (1, self._tokens):
            raise UnsupportedModel(
                f"the layer {layer} sees {tuple(x.shape[:-1])} tokens of {self._tokens}, so an adapter cannot find "
                "its own."
            )
        change = scale * F.linear(F.linear(x[0].index_select(0, tokens), down), up)
        return output.index_add(1, tokens, change[None].to(output.dtype))


def _tokens_of(adapter: Adapter, batch: Batch) -> Tensor | None:
    """Places of an adapter's tokens; ``None`` if all are its own."""
    assert batch.adapters is not None
    if all(other is adapter for other in batch.adapters):
        return None
    places = [
        place
        for index, other in enumerate(batch.adapters)
        if other is adapter
        for place in range(batch.starts[index], batch.starts[index + 1])
    ]
    return torch.tensor(places, device=batch.token_ids.device)
