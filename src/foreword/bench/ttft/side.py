"""The engine behind a bank, as the server has them; the peer sends the policy along and is the same engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from foreword.bank.bank import Bank
from foreword.bench.material import cut, windows
from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import BenchError
from foreword.models.load import load_model
from foreword.prompts.static import static_task
from foreword.server.access import Caller
from foreword.server.tasks import TaskTable
from foreword.text.request import from_text

TASK = "policy"


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Model and engine, ready; nothing of the bank has been read."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    bank = Bank(settings["bank"])
    text = cut(lm.tokenizer, settings["policy"], settings["policy_tokens"])

    def publish() -> dict[str, int]:
        task = bank.publish(static_task(lm, TASK, "prompt", text))
        return {"tokens": task.prefix.length, "bytes": task.prefix.nbytes}

    def questions(count: int) -> list[str]:
        found = windows(lm.tokenizer, settings["requests"], count, settings["question_tokens"])
        return [lm.tokenizer.decode(ids) for ids in found]

    side = _Side(Engine(lm, reuse=False), bank, text)
    return {"publish": publish, "questions": questions, "ask": side.ask}


class _Side:
    def __init__(self, engine: Engine, bank: Bank, policy: str) -> None:
        self._engine = engine
        self._tasks = TaskTable(engine, bank, {})
        self._policy = policy

    def ask(self, questions: Sequence[str], published: bool) -> dict[str, Any]:
        """Ask all at once: mean ``seconds`` to the first token, those until the task was there (``found_seconds``), and
        the first ``tokens``.

        Args:
            published: behind the published policy; otherwise it is part of every question.
        """
        answers = asyncio.run(self._all(questions, published))
        seconds, found, tokens = zip(*answers, strict=True)
        return {"seconds": mean(seconds), "found_seconds": mean(found), "tokens": tokens}

    async def _all(self, questions: Sequence[str], published: bool) -> list[tuple[float, float, int]]:
        began = time.perf_counter()
        return await asyncio.gather(*(self._first(question, published, began) for question in questions))

    async def _first(self, question: str, published: bool, began: float) -> tuple[float, float, int]:
        task = await self._tasks.resolve(TASK if published else self._engine.name, None, Caller())
        found = time.perf_counter() - began
        prompt = from_text(self._engine.tokenizer, task, question if published else self._policy + question)
        stream = self._engine.submit(Request.of(prompt, SamplingParams(max_tokens=1, ignore_eos=True)))
        async for chunk in stream:
            if chunk.error is not None:
                raise BenchError(chunk.error)
            if chunk.token_ids:
                return time.perf_counter() - began, found, chunk.token_ids[0]
        raise BenchError("the engine ended an answer without a token.")
