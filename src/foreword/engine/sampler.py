"""Chooses next tokens: each row by its own request's parameters and its own random numbers.

One row is worked on at a time, by numpy, so that engines without PyTorch choose as the embedded one does.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np

from foreword.core import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

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
            chosen[place] = sequence.chooser.choose(logits[place].float().cpu().numpy())
    return chosen


def choose(row: np.ndarray, sequence: Sequence) -> int | None:
    """The same for the one row of a sequence, logits ``[vocab]`` float32."""
    token = int(row.argmax())  # of a row with a NaN its place
    if not np.isfinite(row[token]):
        return None
    return token if sequence.chooser is None else sequence.chooser.choose(row)


def generator(params: SamplingParams) -> np.random.Generator | None:
    """A request's own source of random numbers; ``None`` for greedy requests."""
    if params.temperature == 0:
        return None
    return np.random.default_rng(None if params.seed is None else params.seed % 2**64)


def draw(row: np.ndarray, params: SamplingParams, source: np.random.Generator) -> int:
    """One token of logits ``row [vocab]``, some of which may be minus infinity."""
    # One uniform number against the running sum; a choice by numpy would check and copy the probabilities first.
    sums = allowed(row, params).cumsum(dtype=np.float64)
    return min(int(sums.searchsorted(source.random() * sums[-1], side="right")), len(sums) - 1)


def allowed(row: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities ``[vocab]`` float32 after temperature, top-k, top-p and then min-p, in Transformers' order."""
    row = (row - row.max()) / np.float32(max(params.temperature, COLDEST))
    if 0 < params.top_k < len(row):
        row = np.where(row < np.partition(row, -params.top_k)[-params.top_k], -np.inf, row)
    probabilities = np.exp(row)
    probabilities /= probabilities.sum()
    if params.top_p < 1.0:
        probabilities = _nucleus(probabilities, params.top_p)
    if params.min_p > 0.0:
        probabilities = np.where(probabilities >= params.min_p * probabilities.max(), probabilities, 0)
        probabilities /= probabilities.sum()
    return probabilities


def best(row: np.ndarray, count: int) -> np.ndarray:
    """Places of the ``count`` largest numbers of a row, largest first; among equals the first."""
    if count < len(row):
        # All that are at least as large as the last of them, so that ties do not depend on the partition.
        places = np.flatnonzero(row >= np.partition(row, -count)[-count]) if count else np.empty(0, dtype=np.int64)
    else:
        places = np.arange(len(row))
    return places[np.argsort(-row[places], kind="stable")][:count]


def _nucleus(probabilities: np.ndarray, mass: float) -> np.ndarray:
    # The largest few nearly always hold the mass; sorting a whole vocabulary takes thirty times as long.
    places = best(probabilities, min(1024, len(probabilities)))
    if probabilities[places].sum() < mass:
        places = best(probabilities, len(probabilities))
    largest = probabilities[places]
    # The token that crosses the mass is kept, and one always is: a mass below 1e-45 is zero in float32.
    kept = places[: max(1, int((largest.cumsum() - largest < mass).sum()))]
    nucleus = np.zeros_like(probabilities)
    nucleus[kept] = probabilities[kept]
    return nucleus / nucleus.sum()
