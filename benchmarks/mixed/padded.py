"""What Transformers can do by itself: one batch of equal rows, an own past for each, and a greedy loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from foreword.bench.worker import Handlers

WEIGHTS = "adapter_model.safetensors"
FLAT = "prompt_embeddings"


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load the stock model and the prefixes."""
    model: Any = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"]))
    prefixes = [_layers(model.config, load_file(Path(folder) / WEIGHTS)[FLAT]) for folder in settings["folders"]]
    return {"run": PaddedBatch(model.eval(), prefixes, settings).run}


def _layers(config: Any, flat: Tensor) -> Tensor:
    """``[P, layers * 2 * kv_heads * dim]`` as ``[layers, 2, kv_heads, P, dim]``."""
    heads = config.num_key_value_heads
    rows = flat.reshape(flat.shape[0], config.num_hidden_layers, 2, heads, -1)
    return rows.permute(1, 2, 3, 0, 4).contiguous()


class PaddedBatch:
    def __init__(self, model: Any, prefixes: Sequence[Tensor], settings: Mapping[str, Any]) -> None:
        self._model = model
        self._prefixes = prefixes
        self._prompts = torch.tensor(settings["prompts"])
        self._output_tokens = settings["output_tokens"]

    @torch.inference_mode()
    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        past, ids, chosen = self._past(), self._prompts, []
        for _ in range(self._output_tokens):
            output = self._model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(ids)
        answers = torch.cat(chosen, 1).tolist()
        return {"seconds": time.perf_counter() - began, "tokens": answers}

    def _past(self) -> DynamicCache:
        """Every row's own prefix: a batch is new whenever requests are, so this is part of the work."""
        past = DynamicCache(config=self._model.config)
        rows = [self._prefixes[row % len(self._prefixes)] for row in range(len(self._prompts))]
        for layer in range(self._model.config.num_hidden_layers):
            key, value = torch.stack([row[layer] for row in rows], 1)
            past.update(key, value, layer)
        return past
