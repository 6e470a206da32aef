"""Tiny models as GGUF files beside their folders, and the engine on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from benchmarks.conformance.gguf import write_gguf
from foreword.bank.bank import Bank
from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.llamacpp.engine import LlamaCppEngine
from foreword.llamacpp.model import gguf_model
from foreword.text.prompt import Prompt
from foreword.text.task_prompts import from_ids
from served_model import CACHE_BYTES, ServedModel, make_served_model, save_model

IDS = (5, 17, 90, 200, 31)
CLOSE = 1e-4
"""How much log-probabilities may differ in float32; 1e-5 was found."""

TIE = 0.03
"""How much they may through a float16 cache; 0.007 was found."""


def make_gguf_model(family: str, place: Path, *, half: bool = False) -> ServedModel:
    """A bank in front of a tiny random model of weights that float16 holds; beside the model's folder lies
    ``model.gguf``, in float32 or with matrices in float16."""
    folder = save_model(family, place / "model")
    file = folder / "model.safetensors"
    save_file({name: tensor.half().float() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    served = make_served_model(folder, place / "bank")
    served.lm.tokenizer.save_pretrained(served.folder)  # with what Transformers adds for a family
    write_gguf(served.lm, gguf_file(served), half=half)
    return served


def gguf_file(served: ServedModel) -> Path:
    return Path(served.folder) / "model.gguf"


def tasks_without_torch(served: ServedModel) -> list:
    """The served's tasks as a process without PyTorch reads them."""
    from foreword.bank.arrays import load_arrays  # which needs what only the extra brings

    bank = Bank(served.bank.location, load=load_arrays)
    return [bank.load(task.ref) for task in served.tasks]


@contextmanager
def llamacpp_engine(served: ServedModel, **options) -> Iterator[LlamaCppEngine]:
    # The file was not converted from the folder by Foreword, so its digest is in no lineage.
    with LlamaCppEngine(gguf_model(str(gguf_file(served))), allow_other_weights=True, **options) as engine:
        yield engine


def make_request(task, ids=IDS, **sampling) -> Request:
    return Request.from_prompt(from_ids(task, ids), SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling}))


def assert_same_answers(
    served: ServedModel, requests: Sequence[Request], found: Sequence[Sequence[int]], ties: float = 0
) -> None:
    """Greedy answers are the embedded engine's.

    A float16 cache rounds by 1 in 2,000, and a random model has pairs of tokens that are as good as equal. With one, a
    share of ``ties`` of all answers may differ; where they first do, the embedded engine itself must find both tokens
    within `TIE`.
    """
    expected = served.expected(requests)
    differ = [i for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)) if list(mine) != list(theirs)]
    assert len(differ) <= ties * len(requests), f"{len(differ)} of {len(requests)} answers differ"
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as engine:
        for index in differ:
            request, mine, theirs = requests[index], found[index], expected[index]
            at = next(n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            own = [*request.token_ids, *theirs[:at]]
            prompts = [
                Prompt((*own, token), request.prefix, request.prefix_length, (len(own) - 1,), request.soft)
                for token in (mine[at], theirs[at])
            ]
            one, other = (float(np.asarray(logprob)[0]) for logprob in engine.token_logprobs(prompts))
            assert abs(one - other) < TIE, f"answer {index} differs at token {at}, which is no tie"
