"""The column vLLM: the embedded engine and vLLM behind the same prefixes of one bank, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from foreword.bank.bank import Bank
from foreword.bench.candidate import Candidate
from foreword.bench.conformance.subject import Subject
from foreword.bench.conformance.vllm_side import Asked, Step, answered
from foreword.bench.conformance.workload import VLLM
from foreword.core import Task
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine
from foreword.errors import BenchError
from foreword.models.model_info import model_info
from foreword.prompts.lower import lower_tokens

FACTORY = "foreword.bench.conformance.vllm_side:start"
# A start takes half a minute on two free cores.
SECONDS = 600
# Of vLLM; the embedded engine says more, so that what is among them is found there whatever its rank.
TOP = 5
LEARNED, STATIC = 37, 15


def on_vllm(subject: Subject) -> Mapping[str, Any]:
    """Log-probabilities of greedy steps, in a process of vLLM's own Python, which may fail as it likes.

    Raises UnsupportedModel for a model that is no causal one, without starting vLLM.
    """
    model_info(str(subject.folder), progress=lambda line: None)
    bank = Bank(subject.folder / "bank")
    asked = published(subject, bank)
    with Engine(subject.lm, cache_bytes=1 << 20) as engine:
        expected = answered(engine, bank, asked, MAX_LOGPROBS)
    settings = {"model": str(subject.folder), "bank": bank.location, "log": str(subject.folder / "vllm.log")}
    try:
        with (
            Candidate("vLLM", FACTORY, settings, VLLM.python, VLLM.environment) as candidate,
            candidate.within(SECONDS),
        ):
            found = candidate.ask("answers", asked=asked, top=TOP)
    except BenchError as error:
        return {"failed": str(error).removeprefix("vLLM failed: ")}
    return compared(found["answers"], expected) if "answers" in found else found


def published(subject: Subject, bank: Bank) -> list[Asked]:
    """Publish a learned and a static prefix. Returns requests behind them, a part of the static one, and neither."""
    bank.publish(Task("learned", "p-tuning-v2", subject.prefix(LEARNED, 1)))
    bank.publish(Task("static", "static", lower_tokens(subject.lm, subject.tokens(STATIC, 3))))
    uses = [(None, 0, 6), ("learned", LEARNED, 1), ("static", STATIC, 13), ("static", 5, 6), ("learned", LEARNED, 9)]
    return [
        {"task": task, "length": length, "token_ids": subject.tokens(own, 10 + index)}
        for index, (task, length, own) in enumerate(uses)
    ]


def compared(found: Sequence[Sequence[Step]], expected: Sequence[Sequence[Step]]) -> Mapping[str, Any]:
    """The largest difference, of every answer up to the first token that differs: the texts part there."""
    differences, same = [], True
    for ours, theirs in zip(found, expected, strict=True):
        for (token, top), (expected_token, known) in zip(ours, theirs, strict=True):
            differences.append(_apart(top, dict(known)))
            if token != expected_token:
                same = False
                break
    difference = float(torch.stack(differences).max())
    if not isfinite(difference):
        return {"failed": "log-probabilities are no numbers"}
    return {"difference": difference, "same_tokens": same}


def _apart(top: Sequence[tuple[int, float]], known: Mapping[int, float]) -> torch.Tensor:
    """Of a step's most probable tokens; one that is not known is below all that are, so it is as far at least."""
    least = min(known.values())
    return torch.tensor([abs(logprob - known.get(token, least)) for token, logprob in top]).max()
