"""An engine of Foreword with the learned prefixes of a bank."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foreword.bench.engines import opened, opened_bank
from foreword.bench.maker import learned_name
from foreword.core import KVPrefix, SamplingParams
from foreword.engine.protocol import Chunk, EngineProtocol, Request
from foreword.errors import BenchError


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Start the engine, and load the prefixes."""
    bank = opened_bank(settings)
    prefixes = [bank.load(learned_name(index)).prefix for index in range(settings["prefixes"])]
    return {"run": _Side(opened(settings), settings["prompts"], prefixes, settings["output_tokens"]).run}


class _Side:
    def __init__(
        self, engine: EngineProtocol, prompts: Sequence[Sequence[int]], prefixes: Sequence[KVPrefix], output_tokens: int
    ) -> None:
        self._engine = engine
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        self._requests = [
            Request(tuple(ids), prefixes[i % len(prefixes)], prefixes[i % len(prefixes)].length, sampling)
            for i, ids in enumerate(prompts)
        ]

    def run(self) -> dict[str, Any]:
        """Answer all requests, handed in at once: ``seconds``, and the ``tokens`` of every answer."""
        began = time.perf_counter()
        answers = list(self._generate())
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": [_tokens(chunks) for chunks in answers]}

    def _generate(self) -> list[list[Chunk]]:
        streams = [self._engine.submit(request) for request in self._requests]
        return [list(stream) for stream in streams]


def _tokens(chunks: Sequence[Chunk]) -> list[int]:
    if chunks[-1].error is not None:
        raise BenchError(chunks[-1].error)
    return [token for chunk in chunks for token in chunk.token_ids]
