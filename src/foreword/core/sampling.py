"""`SamplingParams`: how the next token is chosen, and when generation stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from foreword.core.constraint import Constraint
from foreword.errors import UsageError

MAX_LOGPROBS = 20

REQUEST_ONLY_PARAMS = frozenset({"logprobs", "constraint", "skip_special_tokens", "include_stop_str_in_output"})
"""Parameters of requests alone: a task has no default of them."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token, and when to stop.

    >>> foreword.SamplingParams(max_tokens=32, temperature=0.7, stop=("\\n",)).top_p
    1.0

    Logits are changed in this order: constraint, ``logit_bias``, ``min_tokens``, penalties, temperature, top-k, top-p,
    min-p. Learned positions and soft tokens have no ids, so no penalty knows them.

    Attributes:
        max_tokens: tokens to generate at most.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens with at least this probability mass, ``0 < top_p <= 1``.
        top_k: keep the ``k`` most probable tokens; 0 keeps all.
        seed: makes a sampled answer repeatable whatever else is in the batch; ``None`` draws one.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: token ids that end the answer, besides the model's own end-of-text tokens.
        ignore_eos: go on past the model's end-of-text tokens.
        min_p: keep tokens at least this many times as probable as the most probable one, ``0 <= min_p <= 1``.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that occur in the prompt
            (a static prefix included) or in the answer; 1 is off (Keskar et al. 2019, arXiv:1909.05858).
        presence_penalty: subtracted from the logits of tokens that occur in the answer.
        frequency_penalty: subtracted once for every time that a token occurs in the answer.
        logit_bias: added to the logits of these token ids.
        min_tokens: tokens before anything but ``max_tokens`` may end the answer.
        logprobs: how many of the most probable tokens to report beside every chosen one; ``None`` reports nothing.
        constraint: the form that the answer must have.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: leave the stop text that ended the answer at its end.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    logprobs: int | None = None
    constraint: Constraint | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if not 0.0 <= self.temperature <= 100.0:
            raise UsageError(f"temperature must be between 0 and 100, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (off) or more, got {self.top_k}.")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty; leave it out.")
        if not 0.0 <= self.min_p <= 1.0:
            raise UsageError(f"min_p must be between 0 and 1, got {self.min_p}.")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(f"min_tokens must be between 0 and max_tokens {self.max_tokens}, got {self.min_tokens}.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(f"logprobs must be between 0 and {MAX_LOGPROBS}, got {self.logprobs}.")
        self._check_penalties()
        self._check_constraint()

    def _check_penalties(self) -> None:
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise UsageError(f"repetition_penalty must be between 0.01 and 100, got {self.repetition_penalty}.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise UsageError(f"{name} must be between -2 and 2, got {getattr(self, name)}.")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or token < 0 or not isfinite(bias):
                raise UsageError(f"logit_bias must map token ids to finite numbers, got {token!r}: {bias!r}.")

    def _check_constraint(self) -> None:
        if self.constraint is not None and (self.min_tokens or self.ignore_eos):
            name = "min_tokens" if self.min_tokens else "ignore_eos"
            raise UsageError(f"{name} asks for more than the constraint may allow; send one of them.")
