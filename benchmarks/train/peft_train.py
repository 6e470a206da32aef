"""PEFT: `get_peft_model` on the stock model, padded batches, and the loss that the model itself computes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.memory import PeakMemory
from foreword.bench.worker import Handlers


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load the model, make PEFT's prompt encoder, and give it Foreword's initial values."""
    model: Any = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"]))
    config = peft.get_peft_config(dict(settings["config"]))
    model = peft.get_peft_model(model, config)
    model.prompt_encoder["default"].load_state_dict(load_file(settings["initial"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Weights are mapped from their file and read when they are first used: here, so that both begin loaded.
    _ = sum(float(parameter.sum()) for parameter in model.parameters())
    theirs = PeftTraining(model, trained, settings)
    count = sum(parameter.numel() for parameter in trained)
    return {"memory": PeakMemory(), "step": theirs.step, "trained_parameters": lambda: count}


class PeftTraining:
    def __init__(self, model: Any, trained: Sequence[Tensor], settings: Mapping[str, Any]) -> None:
        self._model = model
        self._optimizer = torch.optim.AdamW(trained, settings["lr"], weight_decay=0.0)
        self._batches = settings["batches"]

    def step(self, turn: int) -> dict[str, float]:
        batch = self._batches[turn % len(self._batches)]
        began = time.perf_counter()
        loss = self._model(**_padded(batch)).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"seconds": time.perf_counter() - began, "loss": float(loss.detach())}


def _padded(batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
    """Rows padded on the right to the longest of the batch; only answers have labels."""
    width = max(len(prompt) + len(target) for prompt, target in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, target) in enumerate(batch):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor([*prompt, *target])
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(target)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
