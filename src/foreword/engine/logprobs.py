"""What the model itself thought of a chosen token, before anything a request wanted changed."""

from __future__ import annotations

from torch import Tensor

from foreword.engine.protocol import TokenLogprob


def token_logprob(row: Tensor, token: int, top: int) -> TokenLogprob:
    """Natural logarithms of the probabilities of ``token`` and of the ``top`` most probable tokens.

    Args:
        row: logits ``[vocab]`` as the model gave them.
    """
    logprobs = row.float() - row.float().logsumexp(-1)
    values, ids = logprobs.topk(min(top, len(logprobs)))
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
