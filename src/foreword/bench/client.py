"""`EngineClient`: requests to an engine in this process, whose tasks are resolved as the server resolves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from statistics import mean
from typing import Any
from weakref import WeakKeyDictionary

from foreword.bank.bank import Bank
from foreword.bench.participants import open_engine
from foreword.bench.worker import Handlers
from foreword.core import KVPrefix, SamplingParams, Task
from foreword.engine.protocol import Chunk, Request
from foreword.errors import BenchError
from foreword.server.operations.auth import Caller
from foreword.server.tasks.table import TaskTable
from foreword.text.task_prompts import from_text

Answer = tuple[float, float, list[int]]
"""When its task was found and its first token came (of `time.perf_counter`), and its tokens."""


def start(settings: Mapping[str, Any]) -> Handlers:
    """Open the engine; nothing of the bank is read before the first request."""
    return {"run": EngineClient(settings).run}


class EngineClient:
    """An engine behind the server's own table of tasks, whose prefixes ``prefix_bytes`` may bound.

    It counts loads from disk, and the bytes of prefixes that are still referenced.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        bank = Bank.for_engine(settings["engine"], settings["bank"])
        self._engine = open_engine(settings)
        self._tasks = TaskTable(self._engine, bank, {}, prefix_bytes=settings.get("prefix_bytes"))
        self._alive: WeakKeyDictionary[KVPrefix, int] = WeakKeyDictionary()
        self._loads = self._resident = 0

    def run(self, requests: Sequence[tuple[str | None, str]], tokens: int, concurrency: int) -> dict[str, Any]:
        """Answer requests, a task (or ``None``) and a text each, ``concurrency`` of them at any time.

        Returns:
            ``seconds`` and ``tokens`` of all; ``first_tokens``, means of ``first_seconds`` and ``load_seconds``, from
            the start to the first token and the task of each; ``loads``, and the most ``resident_bytes`` of prefixes.
        """
        self._loads = self._resident = 0
        began = time.perf_counter()
        answers = asyncio.run(self._run(requests, tokens, concurrency))
        seconds = time.perf_counter() - began
        loaded, first, ids = zip(*answers, strict=True)
        means = {"first_seconds": mean(first) - began, "load_seconds": mean(loaded) - began}
        counted = {"tokens": sum(map(len, ids)), "loads": self._loads, "resident_bytes": self._resident}
        return {"seconds": seconds, **means, **counted, "first_tokens": [each[0] for each in ids]}

    async def answer(self, name: str | None, text: str, count: int) -> Answer:
        task = await self.task(name)
        loaded = time.perf_counter()
        answer = [each async for each in self.tokens(task, text, count)]
        return loaded, answer[0][0], [token for _, token in answer]

    async def task(self, name: str | None) -> Task | None:
        """A task of the bank, loaded if it is not in memory; ``None`` is the base model."""
        task = await self._tasks.resolve(name or self._engine.name, None, Caller())
        if task is not None:
            self._loads += task.prefix not in self._alive
            self._alive[task.prefix] = task.prefix.nbytes
            self._resident = max(self._resident, sum(self._alive.values()))
        return task

    async def tokens(self, task: Task | None, text: str, count: int) -> AsyncGenerator[tuple[float, int]]:
        """Time and id of every token of a greedy answer. Raises BenchError if it fails."""
        prompt = from_text(self._engine.tokenizer, task, text)
        stream = self._engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=count, ignore_eos=True)))
        async for chunk in stream:
            if chunk.error is not None:
                raise BenchError(chunk.error)
            for token in chunk.token_ids:
                yield time.perf_counter(), token

    async def _run(self, requests: Sequence[tuple[str | None, str]], tokens: int, concurrency: int) -> list[Answer]:
        queue, answers = iter(enumerate(requests)), {}

        async def client() -> None:
            for index, (name, text) in queue:
                answers[index] = await self.answer(name, text, tokens)

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return [answers[index] for index in range(len(requests))]


def token_ids(chunks: Sequence[Chunk]) -> list[int]:
    """The tokens of an answer. Raises BenchError if it failed."""
    if chunks[-1].error is not None:
        raise BenchError(chunks[-1].error)
    return [token for chunk in chunks for token in chunk.token_ids]
