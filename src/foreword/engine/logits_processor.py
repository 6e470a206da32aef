"""`LogitsProcessor`: logit bias, penalties and least length of one request, applied to logits before sampling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foreword.core import SamplingParams


class LogitsProcessor:
    """Logit bias, no end before ``min_tokens``, then repetition, presence and frequency penalty, in vLLM's order.

    Args:
        params: of the request.
        prompt_token_ids: ids in front of the answer, for the repetition penalty.
        stop_token_ids: tokens that would end the answer.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Iterable[int], stop_token_ids: Iterable[int]) -> None:
        self._params = params
        self._biased, self._bias = _ids(params.logit_bias), np.array(list(params.logit_bias.values()), dtype=np.float32)
        self._output_counts: dict[int, int] = {}
        self._repeated = set(prompt_token_ids) if params.repetition_penalty != 1.0 else set()
        self._stop_token_ids = tuple(stop_token_ids)
        self._num_output_tokens = 0

    def accept_token(self, token: int) -> None:
        """Count a token of the answer."""
        self._num_output_tokens += 1
        self._output_counts[token] = self._output_counts.get(token, 0) + 1
        self._repeated.add(token)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """The changed logits, a copy of ``logits [vocab]``."""
        params, row = self._params, logits.copy()
        if len(self._biased):
            row[self._biased] += self._bias.astype(row.dtype, copy=False)
        if self._num_output_tokens < params.min_tokens:
            row[_ids(token for token in self._stop_token_ids if 0 <= token < len(row))] = -np.inf
        if params.repetition_penalty != 1.0:
            repeated, factor = _ids(self._repeated), row.dtype.type(params.repetition_penalty)
            before = row[repeated]
            row[repeated] = np.where(before > 0, before / factor, before * factor)
        if self._output_counts and (params.presence_penalty or params.frequency_penalty):
            counts = np.array(list(self._output_counts.values()), dtype=row.dtype)
            row[_ids(self._output_counts)] -= params.presence_penalty + params.frequency_penalty * counts
        return row


def changes_logits(params: SamplingParams) -> bool:
    """Whether a request needs a `LogitsProcessor`."""
    return bool(
        params.logit_bias
        or params.min_tokens
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )


def _ids(ids: Iterable[int]) -> np.ndarray:
    return np.array(list(ids), dtype=np.int64)
