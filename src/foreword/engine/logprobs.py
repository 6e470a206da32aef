"""The model's own log-probabilities of tokens, before temperature, penalties and constraints change the logits."""

from __future__ import annotations

import numpy as np

from foreword.engine.protocol import TokenLogprob
from foreword.engine.sampling import top_indices


def token_logprob(logits: np.ndarray, token_id: int, top: int) -> TokenLogprob:
    """Natural log-probabilities of ``token_id`` and of the ``top`` most probable tokens.

    Args:
        logits: ``[vocab]`` float32 as the model gave them.
    """
    total = logsumexp(logits)
    indices = top_indices(logits, top)
    ranked = zip(indices.tolist(), (logits[indices] - total).tolist(), strict=True)
    return TokenLogprob(token_id, float(logits[token_id] - total), tuple(ranked))


def logsumexp(row: np.ndarray) -> np.float32:
    """``log(sum(exp(row)))``, without overflow."""
    largest = row.max()
    return largest + np.log(np.exp(row - largest).sum())
