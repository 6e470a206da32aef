"""`TokenSampler`: chooses the next tokens of one request.

Callers are the engines, which sample all rows of a step (`sample_batch`) or one row at a time (`sample_row`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from foreword.engine.grammar import GrammarMatcher
from foreword.engine.logits_processor import LogitsProcessor, changes_logits
from foreword.engine.logprobs import token_logprob
from foreword.engine.protocol import Request, TokenLogprob
from foreword.engine.sampling import make_generator, sample_token

if TYPE_CHECKING:
    from torch import Tensor


class TokenSampler:
    """Sampling state of one request: random generator, grammar, penalties. Touched only by the stepping thread.

    Args:
        request: gives the sampling parameters and the prompt's token ids.
        eos_token_ids: tokens that end a text.
        grammar: of the request's constraint, or ``None``.

    Attributes:
        greedy: whether the most probable token is always chosen, and nothing else is asked for; engines then need not
            call `sample`.
        error: a sentence, once no token can be chosen as the request wants it.
        failure: an error of the sampler itself, which no request asks for.
        logprobs: of the token chosen last, if the request asked for them.
    """

    def __init__(self, request: Request, eos_token_ids: Set[int], grammar: GrammarMatcher | None = None) -> None:
        params = request.sampling
        stops = {*params.stop_token_ids, *eos_token_ids}
        self._params = params
        self._generator = make_generator(params)
        self._grammar = grammar
        self._processor = LogitsProcessor(params, request.prompt_token_ids, stops) if changes_logits(params) else None
        plain = self._generator is None and self._grammar is None and self._processor is None
        self.greedy = plain and params.logprobs is None
        self.error: str | None = None
        self.failure: Exception | None = None
        self.logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def constraint_complete(self) -> bool:
        """Whether the answer has the form that was asked for, and nothing can follow."""
        return self._grammar is not None and self._grammar.complete

    def sample(self, logits: np.ndarray) -> int | None:
        """The next token from finite ``logits [vocab]`` float32; ``None`` sets `error` or `failure`."""
        try:
            return self._sample(logits)
        except Exception as error:  # of this request alone, and the others of its step have sampled
            self.failure = error
            return None

    def _sample(self, logits: np.ndarray) -> int | None:
        changed = logits
        if self._grammar is not None:
            changed = self._grammar.mask(changed)
        if self._processor is not None:
            changed = self._processor.apply(changed)
        if not np.isfinite(changed.max()):
            return self._fail("no token is left to choose; relax its constraint, min_tokens or logit_bias.")
        if self._generator is None:
            token = int(changed.argmax())
        else:
            token = sample_token(changed, self._params, self._generator)
        if self._params.logprobs is not None:
            self.logprobs = (token_logprob(logits, token, self._params.logprobs),)
        if self._grammar is not None:
            self._grammar.accept_token(token)
            if self._grammar.error is not None:
                return self._fail(self._grammar.error)
        if self._processor is not None:
            self._processor.accept_token(token)
        return token

    def _fail(self, sentence: str) -> None:
        """Set `error`; the grammar's own error comes first."""
        grammar_error = self._grammar.error if self._grammar is not None else None
        self.error = grammar_error or sentence


def sample_batch(logits: Tensor, samplers: Sequence[TokenSampler]) -> list[int | None]:
    """One token id for every row of ``logits [K, vocab]``, by the row's own sampler.

    The result is ``None`` for a row that is not finite: one broken prefix must not end the other requests of its step.
    """
    largest, greedy = logits.max(-1)
    finite = largest.isfinite().tolist()  # the maximum of a row with a NaN is NaN
    tokens: list[int | None] = [token if good else None for token, good in zip(greedy.tolist(), finite, strict=True)]
    for row, sampler in enumerate(samplers):
        if finite[row] and not sampler.greedy:
            tokens[row] = sampler.sample(logits[row].float().cpu().numpy())
    return tokens


def sample_row(logits: np.ndarray, sampler: TokenSampler) -> int | None:
    """`sample_batch` for one row ``logits [vocab]`` float32 in numpy."""
    token = int(logits.argmax())  # of a row with a NaN its index
    if not np.isfinite(logits[token]):
        return None
    return token if sampler.greedy else sampler.sample(logits)
