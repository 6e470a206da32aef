"""`TokenSampler`: how one request chooses its next token; requests that are plainly greedy have none."""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np

from foreword.core import Constraint
from foreword.engine import penalties
from foreword.engine.grammar import Grammar
from foreword.engine.logprobs import token_logprob
from foreword.engine.penalties import Penalties
from foreword.engine.protocol import Request, TokenLogprob
from foreword.engine.sampler import draw, generator


class TokenSampler:
    """State of one request's choices, touched only by the thread that steps the engine.

    Attributes:
        error: a sentence, once the request cannot go on.
        logprobs: of the token chosen last, if asked for.
    """

    def __init__(self, request: Request, end_ids: Set[int], grammar: Grammar | None) -> None:
        params = request.sampling
        ends = {*params.stop_token_ids, *end_ids}
        self._params = params
        self._source = generator(params)
        self._grammar = grammar
        self._penalties = Penalties(params, request.known_ids, ends) if penalties.wanted(params) else None
        self.error: str | None = None
        self.logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def complete(self) -> bool:
        """The answer has the form that was asked for, and nothing can follow."""
        return self._grammar is not None and self._grammar.complete

    def choose(self, row: np.ndarray) -> int | None:
        """The next token from finite logits ``row [vocab]`` float32; ``None`` sets `error`."""
        changed = row
        if self._grammar is not None:
            changed = self._grammar.mask(changed)
        if self._penalties is not None:
            changed = self._penalties.apply(changed)
        if not np.isfinite(changed.max()):
            return self._fail("no token is left to choose; relax its constraint, min_tokens or logit_bias.")
        token = int(changed.argmax()) if self._source is None else draw(changed, self._params, self._source)
        if self._params.logprobs is not None:
            self.logprobs = (token_logprob(row, token, self._params.logprobs),)
        if self._grammar is not None:
            self._grammar.took(token)
            if self._grammar.error is not None:
                return self._fail(self._grammar.error)
        if self._penalties is not None:
            self._penalties.took(token)
        return token

    def _fail(self, sentence: str) -> None:
        grammar = self._grammar.error if self._grammar is not None else None
        self.error = grammar or sentence


def token_sampler(
    request: Request, end_ids: Set[int], compiled: Callable[[Constraint], Grammar]
) -> TokenSampler | None:
    """Raises RequestError for a constraint that cannot be compiled."""
    params = request.sampling
    if params.constraint is not None:
        return TokenSampler(request, end_ids, compiled(params.constraint))
    plain = params.temperature == 0 and params.logprobs is None and not penalties.wanted(params)
    return None if plain else TokenSampler(request, end_ids, None)
