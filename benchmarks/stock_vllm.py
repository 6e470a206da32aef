"""vLLM by itself, without our connector: what peers run, with the settings that our own engine has there."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.bench.participants import VLLM_FLAGS
from foreword.errors import BenchError
from foreword.models.load import pull
from foreword.vllm import compat

VLLM_SETTINGS = (
    "bfloat16, at most 64 sequences and 4,096 tokens a step, 2 GiB of cache, threads on all cores without binding"
)


@dataclass(frozen=True)
class Answer:
    """What vLLM said: ``seconds`` from the call to the end of this answer, and its tokens."""

    seconds: float
    tokens: Sequence[int]


class StockVllm:
    """Answers many requests at once, greedily and past the end of text.

    Args:
        model: as for `load_model`.
        flags: of ``vllm serve``, besides those that all have.
    """

    def __init__(self, model: str, flags: Sequence[str] = ()) -> None:
        self._loop = asyncio.new_event_loop()
        arguments = [str(pull(model, print)), *VLLM_FLAGS, *flags]
        self._llm = self._loop.run_until_complete(compat.start_engine(arguments, lambda scheduler, iteration: None))
        self._count = 0
        atexit.register(self.close)

    def close(self) -> None:
        """End vLLM's processes."""
        atexit.unregister(self.close)
        self._loop.run_until_complete(compat.shut_down(self._llm))
        self._loop.close()

    def answers(self, prompts: Sequence[Any], tokens: int, adapters: Sequence[Any] = ()) -> list[Answer]:
        """The answers, in the order of their prompts.

        Args:
            prompts: as vLLM takes them.
            tokens: of every answer.
            adapters: a ``LoRARequest`` for every prompt; none without any.
        """
        return self._loop.run_until_complete(self._together(prompts, tokens, adapters or [None] * len(prompts)))

    async def _together(self, prompts: Sequence[Any], tokens: int, adapters: Sequence[Any]) -> list[Answer]:
        params = compat.SamplingParams(
            max_tokens=tokens, temperature=0.0, ignore_eos=True, output_kind=compat.RequestOutputKind.FINAL_ONLY
        )
        began = time.perf_counter()
        asked = zip(prompts, adapters, strict=True)
        return await asyncio.gather(*(self._answer(prompt, params, adapter, began) for prompt, adapter in asked))

    async def _answer(self, prompt: Any, params: Any, adapter: Any, began: float) -> Answer:
        self._count += 1
        found: list[int] = []
        async for output in self._llm.generate(prompt, params, str(self._count), lora_request=adapter):
            found.extend(output.outputs[0].token_ids)
        if len(found) != params.max_tokens:
            raise BenchError(f"vLLM ended an answer after {len(found)} of {params.max_tokens} tokens.")
        return Answer(time.perf_counter() - began, found)
