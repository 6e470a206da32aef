"""An engine behind a bank of many tasks, as the server has them, and traffic that names them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from foreword.bank.bank import Bank
from foreword.bench.engines import opened
from foreword.bench.maker import learned_name
from foreword.core import KVPrefix, SamplingParams
from foreword.engine.protocol import EngineProtocol, Request
from foreword.errors import BenchError
from foreword.server.operations.auth import Caller
from foreword.server.tasks.table import TaskTable
from foreword.text.request import from_text

# Tokens of the running answers between two disturbances, in which what the last one left behind passes.
CALM = 4


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Start the engine; ``prefix_bytes`` bounds the prefixes in memory."""
    side = _Side(opened(settings), Bank(settings["bank"]), settings)
    return {"traffic": side.traffic, "disturbance": side.disturbance}


def drawn(count: int, total: int, skew: float, seed: int) -> list[int]:
    """Which of ``total`` tasks every one of ``count`` requests names: the k-th with a weight of ``1 / k ** skew``."""
    weights = list(accumulate((rank + 1) ** -skew for rank in range(total)))
    return random.Random(seed).choices(range(total), cum_weights=weights, k=count)


class _Side:
    def __init__(self, engine: EngineProtocol, bank: Bank, settings: Mapping[str, Any]) -> None:
        self._engine = engine
        self._tasks = TaskTable(engine, bank, {}, prefix_bytes=settings["prefix_bytes"])
        self._prompts: Sequence[str] = settings["prompts"]
        self._settings = settings
        self._alive: WeakKeyDictionary[KVPrefix, int] = WeakKeyDictionary()
        self._most = 0
        self._loads = 0
        self._cold = 0

    def traffic(self, skew: float | None, turn: int) -> dict[str, Any]:
        """Answer as many requests as there are prompts, a fixed number of them at any time.

        Args:
            skew: see `drawn`; ``None`` for requests that all name one task.
            turn: draws other tasks every time.

        Returns:
            ``seconds``, ``tokens``, how many ``loads`` from disk, and the most ``resident_bytes`` of prefixes that
            anybody in this process held, requests included.
        """
        count, total = len(self._prompts), self._settings["prefixes"]
        seed = self._settings["seed"] * 1000 + turn
        names = [0] * count if skew is None else drawn(count, total, skew, seed)
        self._most, self._loads = 0, 0
        began = time.perf_counter()
        tokens = asyncio.run(self._together([(learned_name(index), row) for row, index in enumerate(names)]))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": tokens, "loads": self._loads, "resident_bytes": self._most}

    async def _together(self, asked: Sequence[tuple[str, int]]) -> int:
        queue = iter(asked)

        async def worker() -> int:
            return sum([await self._answer(name, row, self._settings["output_tokens"]) for name, row in queue])

        return sum(await asyncio.gather(*(worker() for _ in range(self._settings["concurrency"]))))

    async def _answer(self, name: str, row: int, tokens: int) -> int:
        return len([tick async for tick in self._times(name, row, tokens)])

    async def _times(self, name: str, row: int, tokens: int) -> AsyncGenerator[float]:
        """When every token of an answer came, in seconds."""
        task = await self._tasks.resolve(name, None, Caller())
        assert task is not None
        self._note(task.prefix)
        prompt = from_text(self._engine.tokenizer, task, self._prompts[row])
        stream = self._engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=tokens, ignore_eos=True)))
        async for chunk in stream:
            if chunk.error is not None:
                raise BenchError(chunk.error)
            for _ in chunk.token_ids:
                yield time.perf_counter()

    def _note(self, prefix: KVPrefix) -> None:
        if prefix not in self._alive:
            self._loads += 1
            self._alive[prefix] = prefix.nbytes
        self._most = max(self._most, sum(self._alive.values()))

    def disturbance(self) -> dict[str, float]:
        """By how much running answers are later, in seconds, when a request behind a prefix in memory (``warm``) or on
        disk (``cold``) joins them; and the ``step`` that one of their tokens takes undisturbed."""
        return asyncio.run(self._disturbed())

    async def _disturbed(self) -> dict[str, float]:
        during, running = self._settings["during"], self._settings["running"]
        # Twice what three stretches take with their pauses: a request that joins may need longer.
        tokens = 6 * (during + CALM)
        await self._answer(learned_name(0), 0, 1)
        others = [asyncio.create_task(self._answer(learned_name(0), row, tokens)) for row in range(1, running)]
        ticks = self._times(learned_name(0), 0, tokens)
        try:
            calm, count = await self._stretch(ticks, None)
            step = calm / count
            found = {"step": step}
            for kind, name in (("warm", learned_name(0)), ("cold", self._next_cold())):
                seconds, count = await self._stretch(ticks, name)
                found[kind] = seconds - count * step
        except StopAsyncIteration:
            raise BenchError(f"a request that joined was not answered within {tokens} tokens of the others.") from None
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await ticks.aclose()
        return found

    async def _stretch(self, ticks: AsyncGenerator[float], name: str | None) -> tuple[float, int]:
        """Seconds and number of the tokens from when a request joins, until it is answered and some more are."""
        began = ended = 0.0
        for _ in range(CALM):
            began = await anext(ticks)
        joined = asyncio.create_task(self._answer(name, 0, 1)) if name is not None else None
        count = 0
        while count < self._settings["during"] or not (joined is None or joined.done()):
            ended = await anext(ticks)
            count += 1
        if joined is not None:
            await joined  # raises what it raised
        return ended - began, count

    def _next_cold(self) -> str:
        """A task that is not in memory: the bound is far smaller than the bank, so going around it is enough."""
        self._cold = 1 + self._cold % (self._settings["prefixes"] - 1)
        return learned_name(self._cold)
