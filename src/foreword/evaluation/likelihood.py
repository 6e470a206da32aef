"""How surprising the references are to a task."""

from __future__ import annotations

import math
from collections.abc import Sequence


def perplexity(logprobs: Sequence[float], tokens: Sequence[int]) -> float:
    """``exp`` of the mean negative log-likelihood of a reference token.

    Args:
        logprobs: of every reference as a whole, the sum over its tokens; natural logarithms.
        tokens: how many tokens each has.

    Returns:
        At least 1; infinity if it is too large for a float.
    """
    try:
        return math.exp(-math.fsum(logprobs) / sum(tokens))
    except OverflowError:
        return math.inf
