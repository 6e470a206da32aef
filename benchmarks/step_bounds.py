"""What a forward cannot do without: its matrix products, merged where they share an input, and its weights' bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig

from foreword.bench import step
from foreword.bench.participants import EMBEDDED
from foreword.bench.worker import Handlers
from foreword.errors import BenchError
from foreword.models.load import pull

# Far more than any cache holds.
_BANDWIDTH_BYTES = 1 << 28


def start(settings: Mapping[str, Any]) -> Handlers:
    """Our engine, and what bounds it in the same process."""
    handlers = step.start(settings)
    if settings["engine"] != EMBEDDED:
        return handlers
    config = AutoConfig.from_pretrained(pull(settings["model"], print)).get_text_config()
    products = Products(Shapes.of(config), getattr(torch, settings["dtype"]))
    bounds = {"bandwidth": Bandwidth(), "products": products.seconds, "weights": lambda: products.nbytes}
    return {**handlers, **bounds}


@dataclass(frozen=True)
class Shapes:
    """Widths ``(out, in)`` of the products of one layer, in their order, and of the output matrix."""

    layers: int
    layer: tuple[tuple[int, int], ...]
    output: tuple[int, int]

    @classmethod
    def of(cls, config: Any) -> Shapes:
        """Of a model with gated layers, such as Llama: q/k/v merged, o, gate/up merged, down.

        Raises:
            BenchError: its config does not say that it is one.
        """
        if not hasattr(config, "num_key_value_heads") or not hasattr(config, "intermediate_size"):
            raise BenchError(f"{type(config).__name__} is not of Llama's shape, whose products are measured.")
        hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or hidden // heads
        attention = ((heads + 2 * config.num_key_value_heads) * head, hidden), (hidden, heads * head)
        return cls(
            config.num_hidden_layers, (*attention, (2 * inner, hidden), (hidden, inner)), (config.vocab_size, hidden)
        )


class Products:
    """The products of one forward, with weights of their own for every layer, as the model has them.

    Args:
        shapes: of the model.
        dtype: of the model.
    """

    def __init__(self, shapes: Shapes, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(shape: tuple[int, int]) -> Tensor:
            return torch.randn(shape, generator=generator).mul_(0.02).to(dtype)

        self._layers = [[draw(shape) for shape in shapes.layer] for _ in range(shapes.layers)]
        self._output = draw(shapes.output)
        self._inputs = sorted({width for _, width in (*shapes.layer, shapes.output)})
        self._dtype = dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, each of which a forward reads at least once."""
        weights = [self._output, *(weight for layer in self._layers for weight in layer)]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    @torch.inference_mode()
    def seconds(self, rows: int, output_rows: int) -> float:
        """Seconds of all products.

        Args:
            rows: tokens of the forward.
            output_rows: those that reach the output matrix.
        """
        inputs = {width: torch.ones(rows, width, dtype=self._dtype) for width in self._inputs}
        last = inputs[self._output.shape[1]][:output_rows]
        began = time.perf_counter()
        for layer in self._layers:
            for weight in layer:
                F.linear(inputs[weight.shape[1]], weight)
        F.linear(last, self._output)
        return time.perf_counter() - began


class Bandwidth:
    """Bytes a second that all cores together read from memory."""

    def __init__(self) -> None:
        self._numbers = torch.zeros(_BANDWIDTH_BYTES // 4)

    def __call__(self) -> float:
        began = time.perf_counter()
        self._numbers.sum()
        return _BANDWIDTH_BYTES / (time.perf_counter() - began)
