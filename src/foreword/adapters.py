"""LoRA adapters on a frozen model, of which every token of a ragged batch, or every padded row, may use another one.

`LanguageModel` calls this once a forward. Training, lowering and the engine share it, so that what is learned is what
is served; the model's own weights are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def first_tensor(output: Any) -> Any:
    """What a module gives, or the first of it: layers for integers (I-BERT) put their scale beside."""
    return output[0] if isinstance(output, tuple) and output else output


def with_first_tensor(output: Any, new: Tensor) -> Any:
    """Inverse of `first_tensor`."""
    return (new, *output[1:]) if isinstance(output, tuple) else new


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
        self._shape: tuple[int, ...] = ()
        self._applied: set[str] = set()

    def activate(self, batch: Batch) -> None:
        """Set the adapters of the next forward over ``[1, N]`` tokens, each with the indices of its tokens."""
        counts = batch.lengths
        adapters = [a for a, n in zip(batch.adapters, counts, strict=True) for _ in range(n)] if batch.adapters else []
        self._activate(adapters, (1, batch.starts[-1]), batch.token_ids.device)

    def activate_rows(self, adapters: Sequence[Adapter | None], device: torch.device) -> None:
        """Set the adapters of the next forward over ``[R, ...]`` rows, one for each or ``None``."""
        self._activate(adapters, (len(adapters),), device)

    def go_on_rows(self, adapters: Sequence[Adapter | None], device: torch.device) -> None:
        """`activate_rows` within a forward that goes on over other rows, as a decoder's do over its encoder's."""
        applied = self._applied
        self.activate_rows(adapters, device)
        self._applied = applied

    def _activate(self, adapters: Sequence[Adapter | None], shape: tuple[int, ...], device: torch.device) -> None:
        """Set the adapter at every index of the last dimension of ``shape``."""
        self._active, self._applied, self._shape = [], set(), shape
        for adapter in dict.fromkeys(each for each in adapters if each is not None):
            self._hook(adapter)
            mine = [index for index, other in enumerate(adapters) if other is adapter]
            self._active.append((adapter, torch.tensor(mine, device=device) if len(mine) < len(adapters) else None))

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

    def _apply(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        changed = first_tensor(output)
        for adapter, indices in self._active:
            pair = adapter.layers.get(layer)
            if pair is None:
                continue
            self._applied.add(layer)
            changed = self._add_lora(layer, inputs[0], changed, pair.down, pair.up, adapter.scale, indices)
        return with_first_tensor(output, changed)

    def _add_lora(
        self, layer: str, x: Tensor, output: Tensor, down: Tensor, up: Tensor, scale: float, indices: Tensor | None
    ) -> Tensor:
        down, up = down.to(x.device), up.to(x.device)  # a layer may be on another GPU than the batch
        if indices is None:
            return output + scale * F.linear(F.linear(x, down), up)
        if x.dim() <= len(self._shape) or x.shape[: len(self._shape)] != self._shape:
            raise UnsupportedModel(
                f"the layer {layer} sees {tuple(x.shape[:-1])} tokens of {self._shape}, so an adapter cannot find "
                "its own."
            )
        by = len(self._shape) - 1
        indices = indices.to(x.device)
        change = scale * F.linear(F.linear(x.index_select(by, indices), down), up)
        return output.index_add(by, indices, change.to(output.dtype))
