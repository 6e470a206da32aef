"""What is published, asked and handed to peers: made by the model itself, in a process that ends before anybody is
measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.bank.bank import Bank
from foreword.bench.material import cut, windows
from foreword.core import KVPrefix, Task
from foreword.interop.export import export_peft
from foreword.models import LanguageModel
from foreword.models.activations import activations
from foreword.models.load import load_model, pull
from foreword.prompts.static import static_task

MAKER = "foreword.bench.maker:start"
# Share of the spread of real keys and values by which those of a prefix are moved, so that none is that of a text.
NOISE = 0.1
# Different texts at most; a thousand prefixes need not be a thousand forwards.
TEXTS = 32


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Load the model; what is published goes to the settings' ``bank``."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    maker = _Maker(lm, Bank(settings["bank"]), settings)
    return {
        "cut": lambda text, tokens: cut(lm.tokenizer, text, tokens),
        "export": maker.export,
        "folder": lambda: str(pull(settings["model"], print)),
        "publish": maker.publish,
        "publish_text": maker.publish_text,
        "texts": lambda **wanted: [lm.tokenizer.decode(ids) for ids in windows(lm.tokenizer, **wanted)],
        "tokens": lambda **wanted: windows(lm.tokenizer, **wanted),
    }


def learned_name(index: int) -> str:
    """Of a task that `publish` published."""
    return f"t{index:04d}"


class _Maker:
    def __init__(self, lm: LanguageModel, bank: Bank, settings: Mapping[str, Any]) -> None:
        self._lm = lm
        self._bank = bank
        self._settings = settings

    def publish_text(self, name: str, text: str) -> dict[str, int]:
        """Publish a static prompt: its ``tokens`` and ``bytes``."""
        prefix = self._bank.publish(static_task(self._lm, name, "prompt", text)).prefix
        return {"tokens": prefix.length, "bytes": prefix.nbytes}

    def publish(self, text: str) -> int:
        """Publish learned prefixes, as many and as long as the settings say: the bytes of each."""
        tasks = self._tasks(text)
        for task in tasks:
            self._bank.publish(task)
        return tasks[0].prefix.nbytes

    def export(self, text: str, folder: str) -> list[str]:
        """The same prefixes as PEFT folders, one each."""
        folders = []
        for task in self._tasks(text):
            folders.append(str(Path(folder) / task.name))
            export_peft(self._lm, task, Path(folders[-1]))
        return folders

    def _tasks(self, text: str) -> list[Task]:
        wanted = self._settings
        prefixes = made_prefixes(self._lm, text, wanted["prefixes"], wanted["length"], wanted["seed"])
        return [Task(learned_name(index), "p-tuning-v2", prefix) for index, prefix in enumerate(prefixes)]


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
