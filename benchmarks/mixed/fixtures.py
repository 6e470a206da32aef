"""Learned prefixes in a bank, and as the PEFT folders that others load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.bank.bank import Bank
from foreword.bench.prompts import learned_name, windows
from foreword.bench.worker import Handlers
from foreword.core import KVPrefix, Task
from foreword.interop.export import export_peft
from foreword.models import LanguageModel
from foreword.models.activations import activations
from foreword.models.load import load_model, pull

# Share of the spread of real keys and values by which those of a prefix are moved, so that none is that of a text.
NOISE = 0.1


def start(settings: Mapping[str, Any]) -> Handlers:
    lm, bank = load_model(settings["model"], dtype=settings["dtype"], device="cpu"), Bank(settings["bank"])

    def publish(text: str, folder: str) -> list[str]:
        """Publish the tasks, and return their PEFT folders."""
        tasks = {str(Path(folder) / task.name): task for task in learned_tasks(lm, text, settings)}
        for place, task in tasks.items():
            bank.publish(task)
            export_peft(lm, task, Path(place))
        return list(tasks)

    return {
        "folder": lambda: str(pull(settings["model"], print)),
        "publish": publish,
        "tokens": lambda **sizes: windows(lm.tokenizer, **sizes),
    }


def learned_tasks(lm: LanguageModel, text: str, settings: Mapping[str, Any]) -> Iterator[Task]:
    """``prefixes`` tasks of ``length`` positions: keys and values of pieces of a text, moved at random."""
    generator = torch.Generator().manual_seed(settings["seed"])
    pieces = windows(lm.tokenizer, text, settings["prefixes"], settings["length"])
    prefixes = [activations(lm, ids) for ids in pieces]
    for index in range(settings["prefixes"]):
        prefix = _moved(prefixes[index % len(prefixes)], generator)
        yield Task(learned_name(index), "p-tuning-v2", prefix)


def _moved(prefix: KVPrefix, generator: torch.Generator) -> KVPrefix:
    def move(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * float(tensor.float().std())
        return (tensor + NOISE * noise).to(tensor.dtype)

    return replace(prefix, keys=tuple(map(move, prefix.keys)), values=tuple(map(move, prefix.values)))
