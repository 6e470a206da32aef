"""`Victim`: a tiny model in a folder and a bank of two tenants' tasks, for servers that are attacked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.conformance.gguf import write_gguf
from foreword.bank.bank import Bank
from foreword.core import Adapter, LowRank, Task
from foreword.models import LanguageModel, load_model
from foreword.prompts.static import static_task
from served_model import learned, save_model
from text.tool_templates import QWEN
from tiny_models import byte_tokenizer

TENANTS = {"ann": "a", "ben": "b"}
"""Names of keys, and what the names of their tasks begin with."""


@dataclass(frozen=True, eq=False)
class Victim:
    """A model and a bank for ``foreword serve``.

    Attributes:
        place: where the server runs; ``model`` is relative to it.
        model: the name of the model.
        lm: the model in this process.
        bank: the tasks of `TENANTS`.
        engine: that serves.
    """

    place: Path
    model: str
    lm: LanguageModel
    bank: Bank
    engine: str

    def publish(self, name: str, seed: int, *, kind: str = "generate", length: int = 24) -> Task:
        """Publish a task, or a new version of one.

        Args:
            kind: ``generate`` or ``label`` with a learned prefix, ``adapter`` with low-rank changes too, or ``text``
                with the prefix of a text.
        """
        if kind == "text":
            task = static_task(self.lm, name, "prompt", f"Text {seed} of {name}. ".ljust(length, "-"))
        else:
            task = Task(name, "test", learned(self.lm, length, seed))
        if kind == "label":
            words = {"good": (" yes", " fine"), "bad": (" no",)}
            task = replace(task, template="{text}\nMood:{mask}", verbalizer=words)
        if kind == "adapter":
            task = replace(task, adapter=_adapter(self.lm, seed))
        return self.bank.load(self.bank.publish(task).ref)


def _adapter(lm: LanguageModel, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    width = lm.identity.hidden_size
    rows = lm.model.get_submodule("model.layers.1.self_attn.v_proj").weight.shape[0]
    factors = LowRank(torch.randn(2, width, generator=generator) / 4, torch.randn(rows, 2, generator=generator) / 4)
    return Adapter({"model.layers.1.self_attn.v_proj": factors})


def make_victim(place: Path, engine: str = "embedded") -> Victim:
    """Each tenant has a task that generates (``a-say``), one that labels (``a-mood``) and a static one (``a-text``)."""
    save_model("llama", place / "tiny")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = QWEN
    tokenizer.save_pretrained(place / "tiny")
    lm = load_model(str(place / "tiny"), dtype="float32", progress=lambda line: None)
    model = "tiny"
    if engine == "llamacpp":
        write_gguf(lm, place / (model := "tiny/model.gguf"))
    victim = Victim(place, model, lm, Bank(place / "bank"), engine)
    for seed, letter in enumerate(TENANTS.values()):
        victim.publish(f"{letter}-say", 10 + seed)
        victim.publish(f"{letter}-mood", 20 + seed, kind="label")
        victim.publish(f"{letter}-text", 30 + seed, kind="text")
    return victim
