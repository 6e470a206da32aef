"""`SamplingParams`: how the next token is chosen, and when generation stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from foreword.core.constraint import Constraint
from foreword.errors import UsageError

MAX_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1
MAX_TOP_K = 2**31 - 1
MAX_STOPS = 32
"""Stop texts of an answer; the server takes 16 of a request."""
MAX_STOP_CHARACTERS = 16_384
"""Of all stop texts together."""
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 16_384
"""Entries of ``logit_bias``."""
MAX_TOKEN_ID = 2**31 - 1

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
        self._check_types()
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise UsageError(f"max_tokens must be between 1 and {MAX_TOKENS}, got {_shown(self.max_tokens)}.")
        if not 0.0 <= self.temperature <= 100.0:
            raise UsageError(f"temperature must be between 0 and 100, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise UsageError(f"top_k must be 0 (off) to {MAX_TOP_K}, got {_shown(self.top_k)}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"seed must be an integer of 64 bits, got {_shown(self.seed)}.")
        self._check_stops()
        if not 0.0 <= self.min_p <= 1.0:
            raise UsageError(f"min_p must be between 0 and 1, got {self.min_p}.")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(
                f"min_tokens must be between 0 and max_tokens {self.max_tokens}, got {_shown(self.min_tokens)}."
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(f"logprobs must be between 0 and {MAX_LOGPROBS}, got {_shown(self.logprobs)}.")
        self._check_penalties()
        self._check_constraint()

    def _check_penalties(self) -> None:
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise UsageError(f"repetition_penalty must be between 0.01 and 100, got {self.repetition_penalty}.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise UsageError(f"{name} must be between -2 and 2, got {getattr(self, name)}.")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise UsageError(f"logit_bias has {len(self.logit_bias):,} entries; give {MAX_LOGIT_BIAS:,} at most.")
        for token, bias in self.logit_bias.items():
            if not _is_token_id(token) or not _is_finite(bias):
                raise UsageError(
                    f"logit_bias must map token ids to finite numbers, got {_shown(token)}: {_shown(bias)}."
                )

    def _check_types(self) -> None:
        for each in fields(self):
            value, kind = getattr(self, each.name), _KINDS[each.type]
            if not (value is None and each.type.endswith("None")) and not kind.holds(value):
                raise UsageError(f"{each.name} must be {kind.name}, got {_shown(value)}.")

    def _check_stops(self) -> None:
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty; leave it out.")
        if len(self.stop) > MAX_STOPS:
            raise UsageError(f"there are {len(self.stop):,} stop texts; give {MAX_STOPS} at most.")
        if (length := sum(map(len, self.stop))) > MAX_STOP_CHARACTERS:
            raise UsageError(
                f"the stop texts have {length:,} characters; give {MAX_STOP_CHARACTERS:,} at most, together."
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise UsageError(f"stop_token_ids has {len(self.stop_token_ids):,}; give {MAX_STOP_TOKEN_IDS:,} at most.")

    def _check_constraint(self) -> None:
        if self.constraint is not None and (self.min_tokens or self.ignore_eos):
            name = "min_tokens" if self.min_tokens else "ignore_eos"
            raise UsageError(f"{name} asks for more than the constraint may allow; send one of them.")


GENERATION_DEFAULTS = frozenset(each.name for each in fields(SamplingParams)) - REQUEST_ONLY_PARAMS
"""Parameters that a task may have defaults of."""


def parse_generation(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation defaults, as JSON holds them, as parameters of `SamplingParams`.

    Lists become tuples, a text to stop at a tuple of one, and the keys of ``logit_bias`` numbers.

    Raises UsageError for a name, a type or a value that is wrong.
    """
    if unknown := sorted(map(str, defaults.keys() - GENERATION_DEFAULTS)):
        raise UsageError(f"{_shown(unknown[0])} is none of {', '.join(sorted(GENERATION_DEFAULTS))}.")
    found: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in defaults.items()}
    if isinstance(stop := found.get("stop"), str):
        found["stop"] = (stop,)
    if "logit_bias" in found:
        found["logit_bias"] = _parse_logit_bias(found["logit_bias"])
    least = found.get("min_tokens")
    # The length is mostly the request's own.
    length: dict[str, Any] = (
        {"max_tokens": max(least, 1)} if isinstance(least, int) and "max_tokens" not in found else {}
    )
    SamplingParams(**(length | found))
    return found


def _parse_logit_bias(value: Any) -> dict[int, Any]:
    """JSON has no numbers for keys."""
    try:
        return {token if isinstance(token, int) else int(str(token)[:20]): bias for token, bias in value.items()}
    except (AttributeError, ValueError):
        raise UsageError(f"logit_bias must be an object of token ids to numbers, got {_shown(value)}.") from None


@dataclass(frozen=True)
class _Kind:
    """What values a parameter may have, in words and as a function."""

    name: str
    holds: Callable[[Any], bool]


def _is(value: object, kind: type) -> bool:
    """Whether a value is a number of a kind; a truth value is none, and numpy's are."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_token_id(value: Any) -> bool:
    return _is(value, Integral) and 0 <= value <= MAX_TOKEN_ID


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that float32 holds."""
    return _is(value, Real) and -1e30 < value < 1e30


def _shown(value: object) -> str:
    """A value in an error: short, and also of an integer that Python writes no digits of."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "an integer of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_tuple_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and all(map(holds, value))


_KINDS: Mapping[Any, _Kind] = {
    "int": _Kind("an integer", lambda value: _is(value, Integral)),
    "int | None": _Kind("an integer", lambda value: _is(value, Integral)),
    "float": _Kind("a finite number", _is_finite),
    "bool": _Kind("true or false", lambda value: isinstance(value, bool)),
    "tuple[str, ...]": _Kind("texts", _is_tuple_of(lambda value: isinstance(value, str))),
    "tuple[int, ...]": _Kind("token ids", _is_tuple_of(_is_token_id)),
    "Mapping[int, float]": _Kind("token ids with numbers", lambda value: isinstance(value, Mapping)),
    "Constraint | None": _Kind("a Constraint", lambda value: isinstance(value, Constraint)),
}
"""By the annotation of the field."""
