"""Outputs of a Transformers model at chosen places of padded rows, of which only these reach the output matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def logits_at(model: Any, inputs: Mapping[str, Any], rows: Tensor, columns: Tensor) -> Tensor:
    """Logits ``[K, vocab]`` of one forward, at ``rows [K]`` and ``columns [K]`` of its ``[R, T]`` tokens."""
    chosen = False

    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal chosen
        chosen = True
        return (args[0][rows, columns][None], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return logits[0] if chosen else logits[rows, columns]
