"""Beam search over any request: every round asks the engine for one token behind each live beam. Callers hold an
`Engine` that runs; `foreword generate --beams` is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from heapq import nlargest

from foreword.core import MOST_LOGPROBS, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Chunk, Request
from foreword.errors import EngineError, UnsupportedOption, UsageError

KEPT = frozenset({"max_tokens", "stop_token_ids", "ignore_eos"})
"""What a request may ask of its beams."""


@dataclass(frozen=True)
class Beam:
    """One answer.

    Attributes:
        token_ids: generated; the last one may be what ended it.
        logprob: natural logarithm of the probability of all of them.
        score: ``logprob / len(token_ids) ** length_penalty``, by which beams are ranked.
        ended: by a token that ends an answer, not by ``max_tokens``.
    """

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    ended: bool


def beam_search(engine: Engine, request: Request, width: int, length_penalty: float = 1.0) -> list[Beam]:
    """The best ``width`` answers that a search of that width finds, best first.

    As Transformers' ``generate(num_beams=width, early_stopping=False)``: tokens that end an answer are looked for among
    the best ``width`` continuations of a round, and the search goes on while the best live beam, as long as it is, has
    a better score than the worst answer that was found. A round runs a beam's last page anew, the rest is in the cache.

    Args:
        engine: one that steps in a thread of its own.
        length_penalty: above 0 it favours long answers, below 0 short ones.

    Raises:
        UsageError: a width that the log-probabilities of a token do not suffice for.
        UnsupportedOption: the request asks for anything of its answer but `KEPT`.
        EngineError: the engine failed a beam.
    """
    ends = engine.ending(request.sampling)
    _check(engine, request, width, len(ends))
    live, found = [Beam((), 0.0, 0.0, False)], list[Beam]()
    for length in range(1, request.sampling.max_tokens + 1):
        # Of a beam's continuations at most `len(ends)` end, so these hold the best `width` that do not.
        continued = [
            Beam((*beam.token_ids, token), total, total / length**length_penalty, token in ends)
            for beam, top in zip(live, _next_tokens(engine, request, live, width + len(ends)), strict=True)
            for token, logprob in top
            for total in (beam.logprob + logprob,)
        ]
        best = _best(continued, width)
        last = length == request.sampling.max_tokens
        found = _best([*found, *(beam for beam in best if last or beam.ended)], width)
        live = _best([beam for beam in continued if not beam.ended], width)
        if not live or (len(found) == width and live[0].score <= found[-1].score):
            break
    return found


def _best(beams: Sequence[Beam], width: int) -> list[Beam]:
    return nlargest(width, beams, key=lambda beam: beam.score)


def _next_tokens(
    engine: Engine, request: Request, live: Sequence[Beam], count: int
) -> Iterator[tuple[tuple[int, float], ...]]:
    """The most probable next tokens of every beam with their log-probabilities."""
    one = SamplingParams(max_tokens=1, logprobs=count)
    asked = [replace(request, token_ids=(*request.token_ids, *beam.token_ids), sampling=one) for beam in live]
    for chunks in engine.generate(asked):
        yield _top(chunks)


def _top(chunks: Sequence[Chunk]) -> tuple[tuple[int, float], ...]:
    last = chunks[-1]
    if last.finish_reason not in ("stop", "length"):
        raise EngineError(last.error or "the beam search was cancelled.")
    return last.logprobs[0].top


def _check(engine: Engine, request: Request, width: int, ends: int) -> None:
    usual = SamplingParams()
    for name in (field.name for field in fields(SamplingParams)):
        if name not in KEPT and getattr(request.sampling, name) != getattr(usual, name):
            raise UnsupportedOption(f"beam search takes no {name}; leave it out.")
    most = MOST_LOGPROBS - ends
    if not 1 <= width <= most:
        raise UsageError(f"width must be between 1 and {most} beams, got {width}.")
    engine.check(request)
