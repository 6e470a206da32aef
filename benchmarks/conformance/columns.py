"""The columns of other software: PEFT around the stock model, and our engines on vLLM and llama.cpp."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance import engine_steps
from benchmarks.conformance.engine_steps import Call, Decoded, decoded
from benchmarks.conformance.gguf import write_gguf
from benchmarks.conformance.pairs import EncoderDecoderPair
from foreword.bank.bank import Bank
from foreword.bench.conformance import CACHE_BYTES, TEXTS, Figures, ModelPair, largest
from foreword.bench.participants import LLAMACPP, LLAMACPP_PACKAGES, VLLM, VLLM_PACKAGES, Peer
from foreword.bench.worker import Worker
from foreword.core import Task
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine
from foreword.errors import BenchError, UnsupportedModel
from foreword.interop.export import export_peft
from foreword.llamacpp.model import ARCHITECTURES
from foreword.models.model_info import model_info
from foreword.prompts.lower import empty_prefix, lower_tokens

PEFT = Peer("peft", "loads what Foreword exports, around the stock model, in this very process", ("peft",))
VLLM_PEER = Peer(
    VLLM,
    "vLLM with our connector, in float32, eager, with blocks of 32 positions; a process for every family",
    VLLM_PACKAGES,
    environment={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_WAIT_POLICY": "passive",
    },
)
LLAMACPP_PEER = Peer(
    LLAMACPP,
    "llama.cpp on a GGUF file of the same weights, all in float32, its cache too; a process for every family",
    LLAMACPP_PACKAGES,
    environment={"OMP_WAIT_POLICY": "passive"},
)
# Of the engines; the embedded one says more, so that what is among them is found there whatever its rank.
TOP = 5
LEARNED, STATIC = 37, 15
# A start takes half a minute on two free cores.
SECONDS = 600
START_VLLM, START_LLAMACPP = f"{engine_steps.__name__}:start_vllm", f"{engine_steps.__name__}:start_llamacpp"


def peft_round_trip(pair: ModelPair) -> Figures:
    """What is learned as a PEFT folder, in real PEFT around the stock model."""
    if find_spec("peft") is None:  # another Python may have it, but the model is in this one
        return {"missing": "PEFT is not installed beside Foreword"}
    import peft

    folder = pair.folder / "exported"
    trainable = [tensor.detach() for tensor in pair.trainable()]
    if isinstance(pair, EncoderDecoderPair):
        template, words = f"{{soft:{len(trainable[0])}}}{{text}}{{mask}}", {"yes": ("yes",), "no": ("no",)}
        task = Task(
            "exported", "prompt-tuning", empty_prefix(pair.lm), soft=trainable[0], template=template, verbalizer=words
        )
    else:
        task = Task("exported", "p-tuning-v2", pair.prefix(trainable[0].shape[1]))
    export_peft(pair.lm, task, folder)
    model: Any = peft.PeftModel.from_pretrained(pair.load_stock(), str(folder)).eval()

    def logits(row: int, length: int) -> Tensor:
        ids = torch.tensor([pair.tokens(length, row)])
        if isinstance(pair, EncoderDecoderPair):
            mask = torch.ones_like(ids)
            return model(ids, attention_mask=mask, decoder_input_ids=pair.begun(row)).logits[0]
        return model(input_ids=ids).logits[0, -length:]

    with torch.no_grad():
        return {"difference": largest([logits(*each) for each in enumerate(TEXTS)], pair.ours(trainable))}


def on_vllm(pair: ModelPair) -> Figures:
    """Log-probabilities of greedy steps, in a process of vLLM's own Python, which may fail as it likes.

    Raises UnsupportedModel for a model that is no causal one, without starting vLLM.
    """
    model_info(str(pair.folder), progress=lambda line: None)
    return _beside(pair, VLLM_PEER, START_VLLM, pair.folder, log=str(pair.folder / "vllm.log"))


def on_llamacpp(pair: ModelPair) -> Figures:
    """The same on llama.cpp. Raises UnsupportedModel for an architecture that is not run on it."""
    if pair.lm.identity.architecture not in ARCHITECTURES.values():
        known = ", ".join(ARCHITECTURES)
        name = pair.lm.identity.architecture
        raise UnsupportedModel(f"{name} is not run on llama.cpp; use --engine embedded, or a model of {known}.")
    place = pair.folder / "gguf"
    place.mkdir()
    pair.lm.tokenizer.save_pretrained(place)  # with what Transformers adds for a family
    return _beside(pair, LLAMACPP_PEER, START_LLAMACPP, write_gguf(pair.lm, place / "model.gguf"))


def _beside(pair: ModelPair, peer: Peer, factory: str, model: Path, **settings: Any) -> Figures:
    bank = Bank(pair.folder / f"bank-{peer.key}")
    calls = published(pair, bank)
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as engine:
        expected = decoded(engine, bank, calls, MAX_LOGPROBS)
    given = {"model": str(model), "bank": bank.location, **settings}
    try:
        with peer.worker(factory, given) as worker, deadline(worker, SECONDS):
            found = worker.ask("decode", calls=calls, top=TOP)
    except BenchError as error:
        return {"failed": str(error).removeprefix(f"{peer.key} failed: ")}
    return compared(found["steps"], expected) if "steps" in found else found


@contextmanager
def deadline(worker: Worker, seconds: float) -> Iterator[None]:
    """Kill a worker that has not answered in time. Raises BenchError if it had to be."""
    late = threading.Event()
    timer = threading.Timer(seconds, lambda: (late.set(), worker.kill()))
    timer.start()
    try:
        yield
    except BenchError as error:
        if late.is_set():
            raise BenchError(f"{worker.name} failed: it did not answer within {seconds:g} seconds") from error
        raise
    finally:
        timer.cancel()


def published(pair: ModelPair, bank: Bank) -> list[Call]:
    """Publish a learned and a static prefix. Returns requests behind them, a part of the static one, and neither."""
    bank.publish(Task("learned", "p-tuning-v2", pair.prefix(LEARNED, 1)))
    bank.publish(Task("static", "static", lower_tokens(pair.lm, pair.tokens(STATIC, 3))))
    uses = [(None, 0, 6), ("learned", LEARNED, 1), ("static", STATIC, 13), ("static", 5, 6), ("learned", LEARNED, 9)]
    return [
        {"task": task, "length": length, "token_ids": pair.tokens(own, 10 + index)}
        for index, (task, length, own) in enumerate(uses)
    ]


def compared(found: Sequence[Sequence[Decoded]], expected: Sequence[Sequence[Decoded]]) -> Figures:
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


def _apart(top: Sequence[tuple[int, float]], known: Mapping[int, float]) -> Tensor:
    """Of a step's most probable tokens; one that is not known is below all that are, so it is as far at least."""
    least = min(known.values())
    return torch.tensor([abs(logprob - known.get(token, least)) for token, logprob in top]).max()
