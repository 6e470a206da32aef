"""What the model itself thought of a chosen token, before anything a request wanted changed."""

from __future__ import annotations

import numpy as np

from foreword.engine.protocol import TokenLogprob
from foreword.engine.sampler import best


def token_logprob(row: np.ndarray, token: int, top: int) -> TokenLogprob:
    """Natural logarithms of the probabilities of ``token`` and of the ``top`` most probable tokens.

    Args:
        row: logits ``[vocab]`` float32 as the model gave them.
    """
    total = log_sum(row)
    places = best(row, top)
    ranked = zip(places.tolist(), (row[places] - total).tolist(), strict=True)
    return TokenLogprob(token, float(row[token] - total), tuple(ranked))


def log_sum(row: np.ndarray) -> np.float32:
    """``log(sum(exp(row)))``, without overflow."""
    largest = row.max()
    return largest + np.log(np.exp(row - largest).sum())
