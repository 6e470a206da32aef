"""Pearson's and Spearman's correlation coefficients, as SciPy's ``pearsonr`` and ``spearmanr`` compute them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pearson(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Linear correlation, -1 to 1; 0, the value of a guess, where either side has one value only. NaN stays NaN."""
    one, other = (np.asarray(side, dtype=np.float64) - np.mean(side) for side in (predicted, expected))
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale else 0.0


def spearman(predicted: Sequence[float], expected: Sequence[float]) -> float:
    """Pearson's coefficient of the ranks; equal values share the mean of theirs."""
    if any(value != value for value in predicted):
        return float("nan")
    return pearson(_ranks(predicted), _ranks(expected))


def _ranks(values: Sequence[float]) -> list[float]:
    _, group, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - (counts - 1) / 2)[group]).tolist()
