"""The column llama.cpp: the embedded engine and llama.cpp behind the same prefixes of one bank, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.bank.bank import Bank
from foreword.bench.candidate import Candidate
from foreword.bench.conformance.gguf import write_gguf
from foreword.bench.conformance.on_vllm import TOP, compared, published
from foreword.bench.conformance.subject import Subject
from foreword.bench.conformance.vllm_side import answered
from foreword.bench.conformance.workload import LLAMACPP
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine
from foreword.errors import BenchError, UnsupportedModel
from foreword.llamacpp.model import ARCHITECTURES

FACTORY = "foreword.bench.conformance.llamacpp_side:start"


def on_llamacpp(subject: Subject) -> Mapping[str, Any]:
    """Log-probabilities of greedy steps, in a process of its own.

    Raises UnsupportedModel for an architecture that is not run on llama.cpp.
    """
    if subject.lm.identity.architecture not in ARCHITECTURES.values():
        raise UnsupportedModel(
            f"{subject.lm.identity.architecture} is not run on llama.cpp; use --engine embedded, or a model of "
            f"{', '.join(ARCHITECTURES)}."
        )
    bank = Bank(subject.folder / "bank-llamacpp")
    asked = published(subject, bank)
    with Engine(subject.lm, cache_bytes=1 << 20) as engine:
        expected = answered(engine, bank, asked, MAX_LOGPROBS)
    place = subject.folder / "gguf"
    place.mkdir()
    subject.lm.tokenizer.save_pretrained(place)  # with what Transformers adds for a family
    file = write_gguf(subject.lm, place / "model.gguf")
    settings = {"model": str(file), "bank": bank.location}
    try:
        with Candidate("llama.cpp", FACTORY, settings, LLAMACPP.python, LLAMACPP.environment) as candidate:
            return compared(candidate.ask("answers", asked=asked, top=TOP), expected)
    except BenchError as error:
        return {"failed": str(error).removeprefix("llama.cpp failed: ")}
