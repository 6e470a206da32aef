"""llama.cpp alone, called as plainly as Python can."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.bench.step import cells
from foreword.bench.worker import Handlers
from foreword.llamacpp.compat import Session
from foreword.llamacpp.model import gguf_model

ROWS = 512


def start(settings: Mapping[str, Any]) -> Handlers:
    """The library by itself, with the same room as our engine has."""
    alone = LlamaCpp(settings["model"], settings["prompts"], cells(settings))
    return {"begin": alone.begin, "prefill": alone.prefill, "step": alone.step}


class LlamaCpp:
    """One batch a step, and the most probable token of each row."""

    def __init__(self, model: str, prompts: Sequence[Sequence[int]], cells: int) -> None:
        described = gguf_model(model)
        self._session = Session(
            described.file, dtype=described.dtype, num_cells=cells, batch_size=ROWS, max_outputs=len(prompts)
        )
        self._prompts = prompts
        self._next: list[int] = []
        self._position = 0

    def begin(self) -> None:
        """Run all prompts and one step more."""
        self._next = [self._prompt(number, prompt) for number, prompt in enumerate(self._prompts)]
        self._position = len(self._prompts[0])
        self.step()

    def step(self) -> float:
        """Seconds of one step of all answers."""
        began = time.perf_counter()
        session, batch = self._session, self._session.tokens
        count = batch.count = len(self._next)
        batch.token_ids[:count], batch.positions[:count] = self._next, self._position
        batch.seq_ids[:count], batch.outputs[:count] = range(count), 1
        session.decode(batch)
        self._next = [int(session.logits(row).argmax()) for row in range(count)]
        self._position += 1
        return time.perf_counter() - began

    def prefill(self) -> float:
        """Seconds until the first prompt has its first token."""
        self._session.clear(0)
        began = time.perf_counter()
        self._prompt(0, self._prompts[0])
        return time.perf_counter() - began

    def _prompt(self, number: int, prompt: Sequence[int]) -> int:
        session, batch = self._session, self._session.tokens
        for start in range(0, len(prompt), ROWS):
            part = prompt[start : start + ROWS]
            batch.count = len(part)
            batch.token_ids[: len(part)], batch.seq_ids[: len(part)] = part, number
            batch.positions[: len(part)] = range(start, start + len(part))
            batch.outputs[: len(part)] = 0
            batch.outputs[len(part) - 1] = start + len(part) == len(prompt)
            session.decode(batch)
        return int(session.logits(batch.count - 1).argmax())
