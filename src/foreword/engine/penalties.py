"""`Penalties`: what a request wants changed in its logits before anything is chosen among them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foreword.core import SamplingParams


class Penalties:
    """Logit bias, the three penalties, and no end before ``min_tokens``, in vLLM's order.

    Args:
        params: of the request.
        prompt: known token ids in front of the answer.
        ends: tokens that would end the answer.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int], ends: Iterable[int]) -> None:
        self._params = params
        self._counts: dict[int, int] = {}
        self._seen = set(prompt) if params.repetition_penalty != 1.0 else set()
        self._ends = tuple(ends)
        self._taken = 0

    def took(self, token: int) -> None:
        self._taken += 1
        self._counts[token] = self._counts.get(token, 0) + 1
        self._seen.add(token)

    def apply(self, row: np.ndarray) -> np.ndarray:
        """The changed logits, a copy of ``row [vocab]``."""
        params, row = self._params, row.copy()
        if params.logit_bias:
            row[_ids(params.logit_bias)] += np.array(list(params.logit_bias.values()), dtype=row.dtype)
        if self._taken < params.min_tokens:
            row[_ids(end for end in self._ends if 0 <= end < len(row))] = -np.inf
        if params.repetition_penalty != 1.0:
            seen, factor = _ids(self._seen), row.dtype.type(params.repetition_penalty)
            known = row[seen]
            row[seen] = np.where(known > 0, known / factor, known * factor)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            counts = np.array(list(self._counts.values()), dtype=row.dtype)
            row[_ids(self._counts)] -= params.presence_penalty + params.frequency_penalty * counts
        return row


def wanted(params: SamplingParams) -> bool:
    """Whether the request changes any logit."""
    return bool(
        params.logit_bias
        or params.min_tokens
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )


def _ids(ids: Iterable[int]) -> np.ndarray:
    return np.array(list(ids), dtype=np.int64)
