"""Expected calibration error of predicted probabilities."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

NUM_BINS = 15


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = NUM_BINS) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidences: probability of each prediction, 0 to 1.
        correct: whether each prediction is right.
        bins: equal intervals, open below and closed above, whose mean confidence and accuracy are compared.

    Returns:
        From 0 to 1; NaN if a probability is no number.
    """
    if any(map(math.isnan, confidences)):
        return math.nan
    binned: dict[int, list[float]] = defaultdict(list)
    for confidence, hit in zip(confidences, correct, strict=True):
        binned[max(0, math.ceil(confidence * bins) - 1)].append(confidence - hit)
    return sum(abs(sum(gaps)) for gaps in binned.values()) / len(confidences)
