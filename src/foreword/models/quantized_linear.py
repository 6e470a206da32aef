"""Quantized linear layers of other libraries, kept in a form that gradients pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keep_gradients(model: nn.Module) -> None:
    """Give quantized linear layers a backward, in place.

    bitsandbytes' 4-bit layers are kept from packing their weights: on CPUs with AVX512-BF16 such a layer packs them at
    its first forward without gradients in evaluation mode, and packed weights have no backward: everything learned
    through them would keep its first value. Unpacked they are slower to serve.

    An `nn.Linear` whose weight is a tensor of a library's own (torchao's) becomes a `QuantizedLinear`.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if type(module) is nn.Linear and _is_quantized(module.weight):
            module.__class__ = QuantizedLinear


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that multiplies as its weight's library does, and by the numbers it stands for backwards.

    Where the library rounds the input as well, the gradient goes straight through that (Bengio et al. 2013); the
    weight is dequantized for the backward of this layer alone, and never kept.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Linear
        if not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        return _StraightThrough.apply(input, self.weight, self.bias)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None, None


def _is_quantized(weight: Tensor) -> bool:
    return type(weight) not in (Tensor, nn.Parameter) and not weight.requires_grad and hasattr(weight, "dequantize")
