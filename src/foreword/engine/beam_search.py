"""Beam search on top of an `Engine`, which is asked for the next tokens of every live beam in each step.

`foreword generate --beams` uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from heapq import nlargest

from foreword.core import MAX_LOGPROBS, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Chunk, Request, TokenLogprob
from foreword.errors import EngineError, UnsupportedModel, UnsupportedOption, UsageError

SUPPORTED_PARAMS = frozenset({"max_tokens", "stop_token_ids", "ignore_eos"})
"""Sampling parameters that a request with beams may have."""


@dataclass(frozen=True)
class Beam:
    """A beam hypothesis.

    Attributes:
        token_ids: generated; the last one may be a stop token.
        logprob: natural logarithm of the probability of all of them.
        score: ``logprob / len(token_ids) ** length_penalty``, by which beams are ranked.
        finished: ended by a stop token, not by ``max_tokens``.
    """

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    finished: bool


def beam_search(engine: Engine, request: Request, num_beams: int, length_penalty: float = 1.0) -> list[Beam]:
    """The best ``num_beams`` hypotheses of a search with as many beams, best first.

    As Transformers' ``generate(num_beams=..., early_stopping=False)``: stop tokens are looked for among the best
    ``num_beams`` continuations of a step, and the search goes on while the best live beam, as long as it is, has a
    better score than the worst finished one. A step recomputes a beam's last page, the rest is in the cache.

    Args:
        engine: one that steps in a thread of its own.
        length_penalty: above 0 it favours long answers, below 0 short ones.

    Raises:
        UsageError: more beams than the engine reports log-probabilities for.
        UnsupportedOption: the request has sampling parameters other than `SUPPORTED_PARAMS`.
        EngineError: the engine failed a beam.
        UnsupportedModel: an encoder-decoder, whose beams are no continuations of the request's text.
    """
    stop_ids = engine.all_stop_token_ids(request.sampling)
    _check(engine, request, num_beams, len(stop_ids))
    live, finished = [Beam((), 0.0, 0.0, False)], list[Beam]()
    for length in range(1, request.sampling.max_tokens + 1):
        # At most `len(stop_ids)` continuations of a beam end it, so these hold the best `num_beams` that do not.
        continued = [
            Beam((*beam.token_ids, token), total, total / length**length_penalty, token in stop_ids)
            for beam, top in zip(live, _next_tokens(engine, request, live, num_beams + len(stop_ids)), strict=True)
            for token, logprob in top
            for total in (beam.logprob + logprob,)
        ]
        best = _best(continued, num_beams)
        last = length == request.sampling.max_tokens
        finished = _best([*finished, *(beam for beam in best if last or beam.finished)], num_beams)
        live = _best([beam for beam in continued if not beam.finished], num_beams)
        if not live or (len(finished) == num_beams and live[0].score <= finished[-1].score):
            break
    return finished


def _best(beams: Sequence[Beam], count: int) -> list[Beam]:
    return nlargest(count, beams, key=lambda beam: beam.score)


def _next_tokens(
    engine: Engine, request: Request, live: Sequence[Beam], count: int
) -> Iterator[tuple[tuple[int, float], ...]]:
    """The ``count`` most probable next tokens of every beam with their log-probabilities."""
    params = SamplingParams(max_tokens=1, logprobs=count)
    steps = [replace(request, token_ids=(*request.token_ids, *beam.token_ids), sampling=params) for beam in live]
    for chunks in engine.generate(steps):
        yield _top(chunks)


def _top(chunks: Sequence[Chunk]) -> tuple[tuple[int, float], ...]:
    last = chunks[-1]
    if last.finish_reason not in ("stop", "length"):
        raise EngineError(last.error or "the beam search was cancelled.")
    first = last.logprobs[0]
    assert isinstance(first, TokenLogprob)
    return first.top


def _check(engine: Engine, request: Request, num_beams: int, num_stop_ids: int) -> None:
    if engine.is_encoder_decoder:
        raise UnsupportedModel(
            f"{engine.name} is an encoder-decoder, which is not searched with beams; leave them out."
        )
    defaults = SamplingParams()
    for name in (field.name for field in fields(SamplingParams)):
        if name not in SUPPORTED_PARAMS and getattr(request.sampling, name) != getattr(defaults, name):
            raise UnsupportedOption(f"beam search takes no {name}; leave it out.")
    most = MAX_LOGPROBS - num_stop_ids
    if not 1 <= num_beams <= most:
        raise UsageError(f"width must be between 1 and {most} beams, got {num_beams}.")
    engine.check(request)
