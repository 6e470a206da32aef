"""Transformers' side: the stock model, a `DynamicCache`, and greedy steps of a whole batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Load the model."""
    model: Any = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=getattr(torch, settings["dtype"]))
    side = _Side(model.eval(), torch.tensor(settings["prompts"]))
    return {"begin": side.begin, "step": side.step, "prefill": side.prefill}


class _Side:
    def __init__(self, model: Any, prompts: Tensor) -> None:
        self._model = model
        self._prompts = prompts
        self._past = DynamicCache(config=model.config)
        self._next = prompts

    @torch.inference_mode()
    def begin(self) -> None:
        """Run all prompts and one step more."""
        self._past = DynamicCache(config=self._model.config)
        self._next = self._prompts
        self._forward()
        self._forward()

    @torch.inference_mode()
    def step(self) -> float:
        """Seconds of one step of all answers."""
        began = time.perf_counter()
        self._forward()
        return time.perf_counter() - began

    @torch.inference_mode()
    def prefill(self) -> float:
        """Seconds until the first prompt has its first token."""
        self._past = DynamicCache(config=self._model.config)
        self._next = self._prompts[:1]
        began = time.perf_counter()
        self._forward()
        return time.perf_counter() - began

    def _forward(self) -> None:
        output = self._model(input_ids=self._next, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._next = output.logits[:, -1].argmax(-1, keepdim=True)
