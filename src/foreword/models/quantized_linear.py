"""Quantized linear layers of other libraries, kept in a form that gradients pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def keep_gradients(model: nn.Module) -> None:
    """Give quantized linear layers a backward, in place.

    bitsandbytes' 4-bit layers are kept from packing their weights: on CPUs with AVX512-BF16 such a layer packs them at
    its first forward without gradients in evaluation mode, and packed weights have no backward: everything learned
    through them would keep its first value. Unpacked they are slower to serve.

    An `nn.Linear` whose weight is a tensor of a library's own (torchao's) becomes a `QuantizedLinear`; one that has a
    forward of its own, which rounds its input (compressed-tensors'), gets the same backward.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        weight = getattr(module, "weight", None)
        if type(module) is not nn.Linear or not isinstance(weight, Tensor) or weight.requires_grad:
            continue
        if type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize"):
            module.__class__ = QuantizedLinear
        elif "forward" in vars(module) and hasattr(module, "quantization_scheme"):
            vars(module)["forward"] = partial(_straight_through, module.forward, module)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that multiplies as its weight's library does, and by the numbers it stands for backwards.

    Where the library rounds the input as well, the gradient goes straight through that (Bengio et al. 2013); the
    weight is dequantized for the backward of this layer alone, and never kept.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Linear
        return _straight_through(super().forward, self, input)


def _straight_through(multiply: Callable[[Tensor], Tensor], layer: nn.Linear, x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return multiply(x)
    return _StraightThrough.apply(x, multiply, layer)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, multiply: Callable[[Tensor], Tensor], layer: nn.Linear) -> Tensor:
        ctx.layer = layer  # and not its weight, which compressed-tensors replaces at the first forward
        return multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), weight = gradients, ctx.layer.weight
        dense = weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()
        if dense.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise RuntimeError(f"a weight is kept as {dense.dtype} without its scale")
        return gradient @ dense.to(gradient.dtype), None, None
