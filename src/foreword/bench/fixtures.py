"""Tasks and prompts that the model itself makes, in a process that ends before measuring starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from foreword.bank.bank import Bank
from foreword.bench.prompts import learned_name, windows
from foreword.bench.worker import Handlers
from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.models.load import load_model
from foreword.prompts.static import static_task


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load ``model`` in ``dtype``; tasks are published in ``bank``."""
    lm, bank = load_model(settings["model"], dtype=settings["dtype"], device="cpu"), Bank(settings["bank"])

    def publish_text(name: str, text: str) -> dict[str, int]:
        """Publish a static prompt; its ``tokens`` and ``bytes``."""
        prefix = bank.publish(static_task(lm, name, "prompt", text)).prefix
        return {"tokens": prefix.length, "bytes": prefix.nbytes}

    def publish_learned() -> int:
        """Publish ``prefixes`` random tasks of ``length`` positions; the bytes of each."""
        generator = torch.Generator().manual_seed(settings["seed"])
        sizes = []
        for index in range(settings["prefixes"]):
            prefix = random_prefix(lm.identity, settings["length"], generator, lm.dtype)
            sizes.append(bank.publish(Task(learned_name(index), "p-tuning-v2", prefix)).prefix.nbytes)
        return max(sizes)

    return {
        "publish_learned": publish_learned,
        "publish_text": publish_text,
        "texts": lambda **sizes: [lm.tokenizer.decode(ids) for ids in windows(lm.tokenizer, **sizes)],
    }


def random_prefix(model: ModelIdentity, length: int, generator: torch.Generator, dtype: torch.dtype) -> KVPrefix:
    """Keys and values of ``length`` positions, as no text could give them."""
    keys, values = (
        tuple(torch.randn(s.kv_heads, length, width(s), generator=generator).to(dtype) for s in model.layers)
        for width in (lambda s: s.key_dim, lambda s: s.value_dim)
    )
    return KVPrefix(model, keys, values, offset=length)
