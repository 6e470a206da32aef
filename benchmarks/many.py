"""`Many` with what a cold prefix costs the others, and its section in the docs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from benchmarks import markdown
from benchmarks.report import WorkloadReport
from foreword.bench import many
from foreword.bench.client import EngineClient
from foreword.bench.many import CONCURRENCY, LENGTH, ONE, OUTPUT_TOKENS, PREFIXES, PROMPT_TOKENS, REQUESTS, RESIDENT
from foreword.bench.participants import EMBEDDED, OURS
from foreword.bench.prompts import learned_name
from foreword.bench.record import Record
from foreword.bench.worker import Handlers
from foreword.bench.workload import Case, Goal, Log, Options, spread
from foreword.errors import BenchError

COLD, COLD_PREFIXES, COLD_ROUNDS = "cold", 200, 12
RUNNING, DURING = 8, 8
# Tokens of the running answers between two disturbances, in which what the last one left behind passes.
CALM = 4
SHARE = "resident_share_of_bound"


class Many(WorkloadReport, many.Many):
    about = (
        f"{PREFIXES:,} learned prefixes of {LENGTH} positions published in a bank on disk, and memory for {RESIDENT} "
        f"of them. {REQUESTS} requests of {PROMPT_TOKENS} tokens, {CONCURRENCY} at any time, {OUTPUT_TOKENS} greedy "
        "tokens each, through the server's own table of tasks; every request draws a task, all alike (uniform) or the "
        "k-th with a weight of 1/k (zipf). Resident bytes are those of all prefixes that anybody holds, running "
        f"requests included, at their most. cold: by how much {RUNNING} running answers are later because a request "
        "that joins them has to load its prefix from disk, beside one whose prefix is in memory, counted in their "
        "decode steps. vLLM's worker reads prefixes and bounds them by itself; what it loads and holds cannot be seen "
        "from outside, and is left out."
    )

    def cases(self, options: Options) -> list[Case]:
        usual = self.settings(options)
        fewer = {"prefixes": min(COLD_PREFIXES, usual["prefixes"]), "rounds": options.steps or COLD_ROUNDS}
        cold = {**usual, **fewer, "running": RUNNING, "during": DURING}
        return [*super().cases(options), options.case(COLD, _measure_cold, **cold)]

    def goals(self, engine: str) -> Sequence[Goal]:
        goals = []
        for key in many.TRAFFIC:
            share = Goal(f"{key}/{SHARE}", 1.0, at_most=True)
            goals += [Goal(f"{key}/{ONE.key}", 0.9), *([share] if engine == EMBEDDED else [])]
        return [*goals, Goal(f"{COLD}/added_steps", 1.0, at_most=True)]

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        known = {record.key: record.metrics for record in records if "resident_bytes" in record.metrics}
        shares = {f"{key}/{SHARE}": each["resident_bytes"] / each["bound_bytes"] for key, each in known.items()}
        return super().values(records) | shares

    def table(self, records: Mapping[str, Record]) -> str:
        columns = ("traffic", "tokens/s", "behind one prefix", "times (quartiles)", "loads a round", "bytes, bound")
        rows = [_row(key, records[key].metrics) for key in many.TRAFFIC if key in records]
        parts = [markdown.table(columns, rows)] if rows else []
        if COLD in records:
            added = records[COLD].metrics["added_steps"]
            step = markdown.milliseconds(records[COLD].metrics["step_seconds"])
            spread = f"({added['low']:.2f} to {added['high']:.2f})"
            parts.append(f"cold: **{added['median']:.2f}** decode steps {spread} of {step}.")
        return "\n\n".join(parts)


def _row(key: str, found: Mapping[str, Any]) -> list[str]:
    speeds = {name: f"{run['tokens_per_second']['median']:.4g}" for name, run in found["runs"].items()}
    held = f"{found['resident_bytes'] / 1e6:.3g} MB" if "resident_bytes" in found else markdown.MISSING
    loads = f"{found['loads']['median']:g}" if "loads" in found else markdown.MISSING
    times = markdown.times(found["ratios"].get(ONE.key))
    one = speeds.get(ONE.key, markdown.MISSING)
    return [key, speeds[OURS], one, times, loads, f"{held} of {found['bound_bytes'] / 1e6:.3g} MB"]


def _measure_cold(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    with many.started(options, settings, f"{__name__}:start") as (worker, _):
        rounds = [worker.ask("disturb") for _ in range(settings["rounds"] + 1)][1:]
    added = spread([(each["cold"] - each["warm"]) / each["step"] for each in rounds])
    log(f"  a cold prefix adds {added['median']:.2f} decode steps")
    seconds = {f"{name}_seconds": spread([each[name] for each in rounds]) for name in ("step", "warm", "cold")}
    return {"added_steps": added, **seconds}


def start(settings: Mapping[str, Any]) -> Handlers:
    disturbance = Disturbance(EngineClient(settings), settings)
    return {"disturb": lambda: asyncio.run(disturbance.measure())}


class Disturbance:
    """Answers that are running when a request joins them."""

    def __init__(self, client: EngineClient, settings: Mapping[str, Any]) -> None:
        self._client = client
        self._prompts: Sequence[str] = settings["prompts"]
        self._running, self._during = settings["running"], settings["during"]
        self._prefixes = settings["prefixes"]
        self._cold = 0

    async def measure(self) -> dict[str, float]:
        """Seconds by which running answers are later when a request joins them whose prefix is in memory (``warm``) or
        on disk (``cold``), and the ``step`` that one of their tokens takes undisturbed."""
        # Twice what three stretches take with their pauses: a request that joins may need longer.
        count = 6 * (self._during + CALM)
        await self._answer(0)
        others = [asyncio.create_task(self._answer(0, row, count)) for row in range(1, self._running)]
        tokens = self._client.tokens(await self._client.task(learned_name(0)), self._prompts[0], count)
        # The bound is far smaller than the bank, so a task whose turn comes round is not in memory.
        self._cold = 1 + self._cold % (self._prefixes - 1)
        try:
            seconds, count = await self._stretch(tokens, None)
            found = {"step": seconds / count}
            for kind, task in (("warm", 0), ("cold", self._cold)):
                seconds, count = await self._stretch(tokens, task)
                found[kind] = seconds - count * found["step"]
        except StopAsyncIteration:
            raise BenchError("a request that joined was not answered before the others had ended.") from None
        finally:
            for each in others:
                each.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await tokens.aclose()
        return found

    async def _stretch(self, tokens: AsyncGenerator[tuple[float, int]], task: int | None) -> tuple[float, int]:
        """Seconds and number of tokens from when a request joins until it is answered, and some more."""
        began = ended = 0.0
        for _ in range(CALM):
            began, _ = await anext(tokens)
        joined = asyncio.create_task(self._answer(task)) if task is not None else None
        count = 0
        while count < self._during or not (joined is None or joined.done()):
            ended, _ = await anext(tokens)
            count += 1
        if joined is not None:
            await joined  # raises what it raised
        return ended - began, count

    async def _answer(self, task: int, row: int = 0, count: int = 1) -> None:
        await self._client.answer(learned_name(task), self._prompts[row], count)
