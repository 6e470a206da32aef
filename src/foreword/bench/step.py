"""`Step`: one decode step of a batch, and one prefill."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import Any

from foreword.bench.participants import EMBEDDED, ENGINES, LLAMACPP, OURS, open_engine
from foreword.bench.prompts import user_requests, windows
from foreword.bench.worker import Handlers, Worker
from foreword.bench.workload import Case, Log, Options, Workload, compared, interleaved
from foreword.core import SamplingParams
from foreword.engine.protocol import Request
from foreword.errors import BenchError

CONTEXT, PREFILL, PREFILL_TOKENS = 128, "prefill", 2000
BATCHES = {f"b{batch}": batch for batch in (1, 4, 16, 64)}
# The first step after another participant's turn finds cold caches and sleeping threads, so a turn has several.
ROUNDS, STEPS, PREFILL_ROUNDS = 12, 4, 5


class Step(Workload):
    """A decode step of B answers of about 128 tokens, and a prompt of 2,000 tokens until its first token."""

    name = "step"
    engines = (EMBEDDED, LLAMACPP)

    def cases(self, options: Options) -> list[Case]:
        rounds = options.steps or ROUNDS
        # Half of the turns come before the context that is named, half behind it.
        turns = {"prompt_tokens": CONTEXT - rounds * STEPS // 2, "rounds": rounds, "steps": STEPS}
        sizes = {key: {"batch": batch, **turns} for key, batch in BATCHES.items()}
        tokens = min(PREFILL_TOKENS, options.limit or PREFILL_TOKENS)
        sizes[PREFILL] = {"batch": 1, "prompt_tokens": tokens, "rounds": options.steps or PREFILL_ROUNDS, "steps": 1}
        return [options.case(key, self.measure, dtype="bfloat16", **each) for key, each in sizes.items()]

    def measure(self, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
        with started(options, settings, f"{__name__}:start") as ours:

            def turn(name: str, _: int) -> float:
                return mean(ours.ask(work_of(settings)) for _ in range(settings["steps"]))

            return compared(interleaved([OURS], settings["rounds"], turn), log)


@contextmanager
def started(options: Options, settings: Mapping[str, Any], factory: str) -> Iterator[Worker]:
    """Our engine, which has run all prompts if it is stepped."""
    given = {**settings, "text": user_requests(options.data)}
    with ENGINES[options.engine].worker(factory, given) as ours:
        if work_of(settings) == "step":
            ours.ask("begin")
        yield ours


def work_of(settings: Mapping[str, Any]) -> str:
    """The handler that is timed, ``step`` or ``prefill``; a prefill is timed once a turn."""
    return "step" if settings["steps"] > 1 else "prefill"


class SteppedByHand:
    """An engine without a thread that answers ``prompts`` ``[batch][tokens]`` for so many ``steps``."""

    def __init__(self, engine: Any, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self._engine = engine
        self._prompts = prompts
        self._steps = steps

    def begin(self) -> None:
        """Submit all prompts, and step until every one of them is answering."""
        # Those steps that run before all prompts answer come on top. An unreferenced stream is cancelled.
        self._streams = self._submit(self._prompts, self._steps + len(self._prompts))
        while not self._step():
            if not self._engine.statistics()["running"]:
                raise BenchError("the engine never ran all requests in one step; give it more room.")

    def step(self) -> float:
        """Seconds of one step of all answers."""
        began = time.perf_counter()
        whole = self._step()
        seconds = time.perf_counter() - began
        if not whole:
            raise BenchError(f"a step chose tokens of fewer answers than the expected {len(self._prompts)}.")
        return seconds

    def prefill(self) -> float:
        """Seconds until the first prompt has its first token, nothing else running."""
        began = time.perf_counter()
        (stream,) = self._submit(self._prompts[:1], 1)
        while self._engine.step():
            pass
        seconds = time.perf_counter() - began
        if not any(chunk.token_ids for chunk in stream):
            raise BenchError("the engine ended a prompt without a token.")
        return seconds

    def _submit(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Any]:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        return [self._engine.submit(Request(tuple(ids), sampling=sampling)) for ids in prompts]

    def _step(self) -> bool:
        """Whether a step ran and chose exactly a token of every answer."""
        before = self._engine.statistics()
        self._engine.step()
        after = self._engine.statistics()
        return all(after[name] - before[name] == len(self._prompts) for name in ("tokens_run", "tokens_generated"))


def start(settings: Mapping[str, Any]) -> Handlers:
    """Our engine; all participants run its ``prompts``."""
    steps = (settings["rounds"] + 1) * settings["steps"] + 1
    engine = open_engine({**settings, "start": False, "cells": cells(settings)})
    prompts = windows(engine.tokenizer, settings["text"], settings["batch"], settings["prompt_tokens"])
    ours = SteppedByHand(engine, prompts, steps)
    return {"begin": ours.begin, "prefill": ours.prefill, "prompts": lambda: prompts, "step": ours.step}


def cells(settings: Mapping[str, Any]) -> int:
    """Room for all answers in llama.cpp's cache, and not less than it has by default."""
    each = settings["prompt_tokens"] + settings["batch"] + (settings["rounds"] + 2) * settings["steps"]
    return max(8192, settings["batch"] * each)
