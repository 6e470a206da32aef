"""An engine of Foreword that is stepped by hand."""

from __future__ import annotations

import time

from foreword.core import SamplingParams
from foreword.engine.base import EngineBase
from foreword.engine.protocol import Request, Stream
from foreword.errors import BenchError


class Side:
    """An engine that somebody steps by hand.

    Args:
        engine: was made without a thread.
        prompts: token ids.
    """

    def __init__(self, engine: EngineBase, prompts: list[list[int]]) -> None:
        self._engine = engine
        self._prompts = prompts
        self._streams: list[Stream] = []

    def begin(self, tokens: int) -> None:
        """Hand in all prompts, ``tokens`` to be answered each, and step until all of them are answering."""
        # What is computed before the last prompt is through comes on top.
        sampling = SamplingParams(max_tokens=tokens + len(self._prompts), ignore_eos=True)
        self._streams = [self._engine.submit(Request(tuple(ids), sampling=sampling)) for ids in self._prompts]
        while self._step() != (len(self._prompts), len(self._prompts)):
            if not self._engine.statistics()["running"]:
                raise BenchError("the engine never ran all requests in one step; give it more room.")

    def step(self) -> float:
        """Seconds of one step of all answers."""
        began = time.perf_counter()
        done = self._step()
        seconds = time.perf_counter() - began
        if done != (len(self._prompts), len(self._prompts)):
            raise BenchError(f"a step ran {done[0]:g} tokens and chose {done[1]:g}, expected {len(self._prompts)}.")
        return seconds

    def prefill(self) -> float:
        """Seconds until the first prompt has its first token, nothing else running."""
        request = Request(tuple(self._prompts[0]), sampling=SamplingParams(max_tokens=1, ignore_eos=True))
        began = time.perf_counter()
        stream = self._engine.submit(request)
        while self._engine.step():
            pass
        seconds = time.perf_counter() - began
        if not any(chunk.token_ids for chunk in stream):
            raise BenchError("the engine ended a prompt without a token.")
        return seconds

    def _step(self) -> tuple[float, float]:
        """Tokens that one step ran, and tokens that it chose."""
        before = self._engine.statistics()
        self._engine.step()
        after = self._engine.statistics()
        return tuple(after[name] - before[name] for name in ("tokens_run", "tokens_generated"))  # type: ignore[return-value]
