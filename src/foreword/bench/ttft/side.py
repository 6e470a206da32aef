"""An engine behind a bank, as the server has them; the peer `uncached` sends the policy along to the same engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from foreword.bank.bank import Bank
from foreword.bench.engines import opened, opened_bank
from foreword.core import SamplingParams
from foreword.engine.protocol import EngineProtocol, Request
from foreword.errors import BenchError
from foreword.server.operations.auth import Caller
from foreword.server.tasks.table import TaskTable
from foreword.text.request import from_text


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The engine, ready; nothing of the bank has been read."""
    return {"ask": _Side(opened(settings), opened_bank(settings), settings["task"], settings["policy"]).ask}


class _Side:
    def __init__(self, engine: EngineProtocol, bank: Bank, task: str, policy: str) -> None:
        self._engine = engine
        self._tasks = TaskTable(engine, bank, {})
        self._task = task
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
        task = await self._tasks.resolve(self._task if published else self._engine.name, None, Caller())
        found = time.perf_counter() - began
        prompt = from_text(self._engine.tokenizer, task, question if published else self._policy + question)
        stream = self._engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=1, ignore_eos=True)))
        async for chunk in stream:
            if chunk.error is not None:
                raise BenchError(chunk.error)
            if chunk.token_ids:
                return time.perf_counter() - began, found, chunk.token_ids[0]
        raise BenchError("the engine ended an answer without a token.")
