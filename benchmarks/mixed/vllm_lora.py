"""vLLM's own way of many tasks in one batch: a LoRA for each, beside the stock model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.mixed.peft_generate import RANK
from benchmarks.stock_vllm import StockVllm
from foreword.bench.worker import Handlers
from foreword.vllm import compat

LORAS = 32
KEPT = 64


def start(settings: Mapping[str, Any]) -> Handlers:
    """Start vLLM; the adapters are loaded with the first requests that name them."""
    flags = ["--enable-lora", "--max-loras", str(LORAS), "--max-lora-rank", str(RANK), "--max-cpu-loras", str(KEPT)]
    llm = StockVllm(settings["model"], flags)
    adapters = [compat.LoRARequest(f"t{i}", i + 1, folder) for i, folder in enumerate(settings["adapters"])]
    prompts = [{"prompt_token_ids": ids} for ids in settings["prompts"]]
    named = [adapters[row % len(adapters)] for row in range(len(prompts))]

    def run() -> dict[str, Any]:
        began = time.perf_counter()
        answers = llm.answers(prompts, settings["output_tokens"], named)
        return {"seconds": time.perf_counter() - began, "tokens": [each.tokens for each in answers]}

    return {"run": run}
