"""Chooses next tokens: each row by its own request's parameters and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foreword.core import SamplingParams

if TYPE_CHECKING:
    from foreword.engine.sequence import Sequence

COLDEST = 1e-5
"""Temperatures below it would overflow; the answer is that of the most probable token anyway."""


def sample(logits: Tensor, sequences: Items[Sequence]) -> list[int | None]:
    """One token id a row of ``logits [K, vocab]``; what else is in the batch does not matter.

    ``None`` stands for a row that is not finite: one broken prefix must not end the other requests of its step.
    """
    best, greedy = logits.max(-1)
    finite = best.isfinite().tolist()  # the maximum of a row with a NaN is NaN
    chosen: list[int | None] = [token if good else None for token, good in zip(greedy.tolist(), finite, strict=True)]
    for place, sequence in enumerate(sequences):
        if sequence.chooser is not None and finite[place]:
            chosen[place] = sequence.chooser.choose(logits[place].float())
    return chosen


def generator(params: SamplingParams) -> torch.Generator | None:
    """A request's own source of random numbers; ``None`` for greedy requests."""
    if params.temperature == 0:
        return None
    source = torch.Generator()
    if params.seed is None:
        source.seed()
    else:
        source.manual_seed(params.seed % 2**64)
    return source


def draw(row: Tensor, params: SamplingParams, source: torch.Generator) -> int:
    """One token of logits ``row [vocab]``, some of which may be minus infinity."""
    # One uniform number against the running sum; `torch.multinomial` would draw one for every token of the vocabulary.
    sums = allowed(row, params).cpu().double().cumsum(-1)
    uniform = torch.rand(1, generator=source, dtype=torch.float64)
    return min(int(torch.searchsorted(sums, uniform * sums[-1], right=True)), len(sums) - 1)


def allowed(row: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities ``[vocab]`` after temperature, top-k, top-p and then min-p, in Transformers' order."""
    row = (row - row.max()) / max(params.temperature, COLDEST)
    if 0 < params.top_k < row.shape[-1]:
        row = row.masked_fill(row < row.topk(params.top_k).values[-1], float("-inf"))
    probabilities = row.softmax(-1)
    if params.top_p < 1.0:
        probabilities = _nucleus(probabilities, params.top_p)
    if params.min_p > 0.0:
        probabilities = probabilities.where(probabilities >= params.min_p * probabilities.max(), 0.0)
        probabilities = probabilities / probabilities.sum()
    return probabilities


def _nucleus(probabilities: Tensor, mass: float) -> Tensor:
    # The largest few nearly always hold the mass; sorting a whole vocabulary takes thirty times as long.
    largest, places = probabilities.topk(min(1024, probabilities.shape[-1]))
    if float(largest.sum()) < mass:
        largest, places = probabilities.sort(descending=True)
    # The token that crosses the mass is kept, so at least one always is.
    kept = places[largest.cumsum(-1) - largest < mass]
    nucleus = torch.zeros_like(probabilities).index_copy(0, kept, probabilities[kept])
    return nucleus / nucleus.sum()
