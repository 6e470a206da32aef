"""llama.cpp alone, called as plainly as Python can; and our engine on it, stepped by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foreword.bench.material import windows
from foreword.bench.step.by_hand import Side
from foreword.llamacpp.compat import Session
from foreword.llamacpp.engine import CELLS, LlamaCppEngine
from foreword.llamacpp.model import gguf_model

ROWS = 512


def start_ours(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Our engine without a thread."""
    model = gguf_model(settings["model"])
    prompts = windows(model.tokenizer, settings["text"], settings["batch"], settings["prompt_tokens"])
    side = Side(LlamaCppEngine(model, cells=_cells(settings), start=False), prompts)
    return {
        "begin": side.begin,
        "folder": lambda: str(model.file),
        "prefill": side.prefill,
        "prompts": lambda: prompts,
        "step": side.step,
    }


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The library by itself."""
    side = _Side(settings["model"], settings["prompts"], _cells(settings))
    return {"begin": side.begin, "prefill": side.prefill, "step": side.step}


def _cells(settings: Mapping[str, Any]) -> int:
    """Room for all answers, the same for both."""
    each = settings["prompt_tokens"] + settings["batch"] + (settings["rounds"] + 2) * settings["steps"]
    return max(CELLS, settings["batch"] * each)


class _Side:
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
