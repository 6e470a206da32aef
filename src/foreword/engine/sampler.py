"""Chooses next tokens: each row by its own request's parameters and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from foreword.core import SamplingParams
from foreword.engine.sequence import Sequence


def sample(logits: Tensor, sequences: Items[Sequence]) -> list[int]:
    """One token id a row of ``logits [K, vocab]`` float32; what else is in the batch does not matter."""
    greedy = logits.argmax(-1).tolist()
    return [
        token if sequence.generator is None else _draw(row, sequence.request.sampling, sequence.generator)
        for token, row, sequence in zip(greedy, logits, sequences, strict=True)
    ]


def generator(params: SamplingParams) -> torch.Generator | None:
    """A request's own source of random numbers; ``None`` for greedy requests."""
    if params.temperature == 0:
        return None
    source = torch.Generator()
    if params.seed is None:
        source.seed()
    else:
        source.manual_seed(params.seed)
    return source


def _draw(row: Tensor, params: SamplingParams, source: torch.Generator) -> int:
    probabilities = allowed(row / params.temperature, params).cpu()
    return int(torch.multinomial(probabilities, 1, generator=source))


def allowed(row: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities ``[vocab]`` after top-k and then top-p, as in Transformers' and vLLM's order."""
    if 0 < params.top_k < row.shape[-1]:
        row = row.masked_fill(row < row.topk(params.top_k).values[-1], float("-inf"))
    probabilities = row.softmax(-1)
    if params.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        # The token that crosses the mass is kept, so at least one always is.
        dropped = order[ordered.cumsum(-1) - ordered >= params.top_p]
        probabilities[dropped] = 0.0
        probabilities /= probabilities.sum()
    return probabilities
