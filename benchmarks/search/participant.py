"""All variants side by side in a search, or one of them in a run of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file

from foreword.bench.worker import Handlers
from foreword.core import KVPrefix
from foreword.models import LanguageModel, load_model
from foreword.training.recipe import Recipe
from foreword.training.search.config import SearchConfig
from foreword.training.search.search import search
from foreword.training.train import train


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load the model; ``recipe`` is that of all variants, ``varied`` and ``halving`` are the search's."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    learning = Learning(lm, settings)
    return {"alone": learning.alone, "search": learning.search, "difference": difference}


def difference(one: str, other: str) -> float | None:
    """The largest difference between two saved prefixes; ``None`` if they have different lengths."""
    ours, theirs = load_file(one), load_file(other)
    if any(ours[name].shape != theirs[name].shape for name in ours):
        return None
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


class _Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def passed(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


class Learning:
    def __init__(self, lm: LanguageModel, settings: Mapping[str, Any]) -> None:
        self._lm = lm
        self._settings = settings
        self._plan = SearchConfig.of(settings["varied"], halving=settings["halving"])
        self._points = list(self._plan.space.grid())

    def alone(self, variant: int, steps: int, save: str | None = None) -> dict[str, Any]:
        """Learn one variant as ``foreword train`` does, from reading the rows to the figures of what was learned."""
        with TemporaryDirectory() as folder:
            recipe = self._plan.trial_recipe(self._recipe(folder, steps), self._points[variant])
            began = _Clock()
            outcome = train(self._lm, recipe)
            seconds = began.passed()
            log = json.loads((Path(folder) / "history.json").read_text(encoding="utf-8"))["log"]
        if save is not None:
            _save(outcome.task.prefix, save)
        score = max(entry["eval_score"] for entry in log if "eval_score" in entry)
        return {**seconds, "score": score, "point": self._points[variant]}

    def search(self, steps: int, save: str) -> dict[str, Any]:
        """Learn all of them, from reading the rows to the figures of the winner."""
        with TemporaryDirectory() as folder:
            began = _Clock()
            found = search(self._lm, self._recipe(folder, steps), self._plan)
            seconds = began.passed()
        _save(found.task.prefix, save)
        return {
            **seconds,
            "winner": self._points.index(found.winner.params),
            "score": found.winner.best_score,
            "savings": found.savings,
        }

    def _recipe(self, folder: str, steps: int) -> Recipe:
        return Recipe(**self._settings["recipe"], max_steps=steps, out=folder)


def _save(prefix: KVPrefix, file: str) -> None:
    keys = {f"key.{layer}": key.contiguous() for layer, key in enumerate(prefix.keys)}
    save_file(keys | {f"value.{layer}": value.contiguous() for layer, value in enumerate(prefix.values)}, file)
