"""Quantized linear layers of other libraries, kept in a form that gradients pass."""

from __future__ import annotations

from torch import nn


def keep_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers from packing their weights, in place.

    On CPUs with AVX512-BF16 such a layer packs its weight at its first forward without gradients in evaluation mode,
    and packed weights have no backward: everything learned through them would keep its first value. Unpacked they are
    slower to serve.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
