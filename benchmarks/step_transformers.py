"""The stock model in plain Transformers: a `DynamicCache`, and greedy steps of a whole batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from foreword.bench.worker import Handlers
from foreword.models.load import pull


def start(settings: Mapping[str, Any]) -> Handlers:
    """The stock model."""
    folder = pull(settings["model"], print)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings["dtype"]))
    prompts = torch.tensor(settings["prompts"])
    state: dict[str, Any] = {}

    @torch.inference_mode()
    def forward() -> float:
        began = time.perf_counter()
        output = model(input_ids=state["ids"], past_key_values=state["past"], use_cache=True, logits_to_keep=1)
        state["ids"] = output.logits[:, -1].argmax(-1, keepdim=True)
        return time.perf_counter() - began

    def restart(rows: torch.Tensor) -> float:
        state.update(ids=rows, past=DynamicCache(config=model.config))
        return forward()

    return {"begin": lambda: restart(prompts) + forward(), "prefill": lambda: restart(prompts[:1]), "step": forward}
