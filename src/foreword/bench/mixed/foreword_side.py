"""Foreword's side: the embedded engine; it also makes the prompts and prefixes that all sides use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.bench.material import windows
from foreword.core import KVPrefix, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Chunk, Request
from foreword.errors import BenchError
from foreword.interop.export import export_peft
from foreword.models import LanguageModel
from foreword.models.activations import activations
from foreword.models.load import load_model, pull

# Share of the spread of real keys and values by which those of a prefix are moved, so that none is that of a text.
NOISE = 0.1
# Different texts at most; a thousand prefixes need not be a thousand forwards.
TEXTS = 32


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Load the model, make prefixes and prompts, and start the engine."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    prefixes = made_prefixes(lm, settings["text"], settings["prefixes"], settings["length"], settings["seed"])
    prompts = windows(lm.tokenizer, settings["text"], settings["requests"], settings["prompt_tokens"])
    side = _Side(Engine(lm, reuse=False), prompts, prefixes, settings["output_tokens"])
    return {
        "export": lambda folder: _export(lm, prefixes, Path(folder)),
        "folder": lambda: str(pull(settings["model"], print)),
        "prompts": lambda: prompts,
        "run": side.run,
    }


def made_prefixes(lm: LanguageModel, text: str, count: int, length: int, seed: int) -> list[KVPrefix]:
    """Learned prefixes of ``length`` positions: what real text gives, moved at random."""
    generator = torch.Generator().manual_seed(seed)
    real = [activations(lm, ids) for ids in windows(lm.tokenizer, text, min(count, TEXTS), length)]
    return [_moved(real[index % len(real)], generator) for index in range(count)]


def _moved(prefix: KVPrefix, generator: torch.Generator) -> KVPrefix:
    def move(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * float(tensor.float().std())
        return (tensor + NOISE * noise).to(tensor.dtype)

    return replace(prefix, keys=tuple(map(move, prefix.keys)), values=tuple(map(move, prefix.values)))


def _export(lm: LanguageModel, prefixes: Sequence[KVPrefix], folder: Path) -> list[str]:
    """A PEFT folder for every prefix."""
    folders = []
    for index, prefix in enumerate(prefixes):
        export_peft(lm, Task(f"t{index}", "p-tuning-v2", prefix), folder / f"t{index}")
        folders.append(str(folder / f"t{index}"))
    return folders


class _Side:
    def __init__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], prefixes: Sequence[KVPrefix], output_tokens: int
    ) -> None:
        self._engine = engine
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        self._requests = [
            Request(tuple(ids), prefixes[i % len(prefixes)], prefixes[i % len(prefixes)].length, sampling)
            for i, ids in enumerate(prompts)
        ]

    def run(self) -> dict[str, Any]:
        """Answer all requests, handed in at once: ``seconds``, and the ``tokens`` of every answer."""
        began = time.perf_counter()
        answers = list(self._engine.generate(self._requests))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": [_tokens(chunks) for chunks in answers]}


def _tokens(chunks: Sequence[Chunk]) -> list[int]:
    if chunks[-1].error is not None:
        raise BenchError(chunks[-1].error)
    return [token for chunk in chunks for token in chunk.token_ids]
