"""LoRA adapters on a frozen model, of which every token of a ragged batch may use another one, or none.

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

_ATTRIBUTE = "_foreword_adapters"


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """``(in, out)`` widths of the linear layers an adapter can change, by module name; not of the output matrix."""
    find = getattr(model, "get_output_embeddings", None)
    output = find() if callable(find) else None
    widths: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        width = linear_width(module)
        if width is not None and module is not output:
            widths[name] = width
    return widths


def linear_width(module: nn.Module) -> tuple[int, int] | None:
    """``(in, out)`` widths of a linear layer, also of one that a quantization library puts in its place; or ``None``.

    Those need not derive from `nn.Linear`, but all of them say their widths as it does.
    """
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    width = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return width if isinstance(width[0], int) and isinstance(width[1], int) else None  # type: ignore[return-value]


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


class AdapterHooks:
    """Forward hooks on the linear layers of one model, which add the adapters of the batch that runs.

    A layer gets its hook when an adapter first changes it; the hook reads what `activate` has set. Where gradients are
    recorded that stays until the next forward, since checkpointing runs layers again during the backward pass. A model
    has one `AdapterHooks` (`of`), however many wrappers it has: adapters that one left active must not change the
    forward of another.
    """

    @classmethod
    def of(cls, model: nn.Module) -> AdapterHooks:
        """The hooks of a model, kept as an attribute of it."""
        hooks = vars(model).get(_ATTRIBUTE)
        if hooks is None:
            hooks = cls(model)
            setattr(model, _ATTRIBUTE, hooks)
        return hooks

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._hooked: set[str] = set()
        self._active: list[tuple[Adapter, Tensor | None]] = []
        self._tokens = 0
        self._applied: set[str] = set()

    def activate(self, batch: Batch) -> None:
        """Set the adapters of the next forward, each with the indices of its tokens."""
        self._active, self._applied = [], set()
        self._tokens = batch.starts[-1]
        if batch.adapters is None or all(adapter is None for adapter in batch.adapters):
            return
        for adapter in dict.fromkeys(batch.adapters):
            if adapter is not None:
                self._hook(adapter)
                self._active.append((adapter, _token_indices(adapter, batch)))

    def clear(self) -> None:
        """Deactivate all adapters."""
        self._active = []

    def check_applied(self, name: str) -> None:
        """Raise UnsupportedModel unless every changed layer ran as a module in the forward that just ended."""
        layers = {layer for adapter, _ in self._active for layer in adapter.layers}
        if missing := sorted(layers - self._applied):
            raise UnsupportedModel(
                f"{name} does not run its layer {missing[0]} as a module, so an adapter on it would be lost; publish a "
                "task without an adapter for this model."
            )

    def _hook(self, adapter: Adapter) -> None:
        new = [layer for layer in adapter.layers if layer not in self._hooked]
        if new:
            check_adapter(adapter, self._model, "the adapter")
        for layer in new:
            self._modules[layer].register_forward_hook(partial(self._apply, layer))
            self._hooked.add(layer)

    def _apply(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for adapter, tokens in self._active:
            pair = adapter.layers.get(layer)
            if pair is None:
                continue
            self._applied.add(layer)
            output = self._add_lora(layer, inputs[0], output, pair.down, pair.up, adapter.scale, tokens)
        return output

    def _add_lora(
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


def _token_indices(adapter: Adapter, batch: Batch) -> Tensor | None:
    """Indices of an adapter's tokens in the batch; ``None`` if all tokens use it."""
    assert batch.adapters is not None
    if all(other is adapter for other in batch.adapters):
        return None
    indices = [
        token
        for index, other in enumerate(batch.adapters)
        if other is adapter
        for token in range(batch.starts[index], batch.starts[index + 1])
    ]
    return torch.tensor(indices, device=batch.token_ids.device)
