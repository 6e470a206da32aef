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
from foreword.text.request import Prompt, from_ids
from on_vllm.model_fixtures import CACHE_BYTES, House, open_house, save_model

IDS = (5, 17, 90, 200, 31)
CLOSE = 1e-4
"""How much log-probabilities may differ in float32; 1e-5 was found."""

TIE = 0.03
"""How much they may through a float16 cache; 0.007 was found."""


def gguf_house(family: str, place: Path, *, half: bool = False) -> House:
    """A bank in front of a tiny random model of weights that float16 holds; beside the model's folder lies
    ``model.gguf``, in float32 or with matrices in float16."""
    folder = save_model(family, place / "model")
    file = folder / "model.safetensors"
    save_file({name: tensor.half().float() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    house = open_house(folder, place / "bank")
    house.lm.tokenizer.save_pretrained(house.folder)  # with what Transformers adds for a family
    write_gguf(house.lm, gguf_of(house), half=half)
    return house


def gguf_of(house: House) -> Path:
    return Path(house.folder) / "model.gguf"


def edge_tasks(house: House) -> list:
    """The house's tasks as a process without PyTorch reads them."""
    from foreword.bank.arrays import load_arrays  # which needs what only the extra brings

    bank = Bank(house.bank.place, load=load_arrays)
    return [bank.load(task.ref) for task in house.tasks]


@contextmanager
def llamacpp_engine(house: House, **options) -> Iterator[LlamaCppEngine]:
    # The file was not converted from the folder by Foreword, so its digest is in no lineage.
    with LlamaCppEngine(gguf_model(str(gguf_of(house))), allow_other_weights=True, **options) as engine:
        yield engine


def asked(task, ids=IDS, **sampling) -> Request:
    return Request.of(from_ids(task, ids), SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling}))


def check_answers(house: House, requests: Sequence[Request], found: Sequence[Sequence[int]], ties: float = 0) -> None:
    """Greedy answers are the embedded engine's.

    A float16 cache rounds by 1 in 2,000, and a random model has pairs of tokens that are as good as equal. With one, a
    share of ``ties`` of all answers may differ; where they first do, the embedded engine itself must find both tokens
    within `TIE`.
    """
    expected = house.expected(requests)
    differ = [i for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)) if list(mine) != list(theirs)]
    assert len(differ) <= ties * len(requests), f"{len(differ)} of {len(requests)} answers differ"
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as engine:
        for index in differ:
            request, mine, theirs = requests[index], found[index], expected[index]
            at = next(n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            own = [*request.token_ids, *theirs[:at]]
            prompts = [
                Prompt((*own, token), request.prefix, request.prefix_length, (len(own) - 1,), request.soft)
                for token in (mine[at], theirs[at])
            ]
            one, other = (float(np.asarray(logprob)[0]) for logprob in engine.likelihood(prompts))
            assert abs(one - other) < TIE, f"answer {index} differs at token {at}, which is no tie"
