"""The runs of all users, stepped together or one after another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from foreword.bench.worker import Handlers
from foreword.engine.engine import Engine
from foreword.models.load import load_model
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.recipe import Recipe
from foreword.training.run import Run

RECIPE_FIELDS = ("method", "template", "verbalizer", "length", "batch_size", "max_steps", "seed")


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load the model and make everything ready for the first step."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    engine = Engine(lm, reuse=False)
    recipe = {name: settings[name] for name in RECIPE_FIELDS}
    runs = []
    for file in sorted(Path(settings["users"]).glob("*.jsonl")):
        run = Run.from_recipe(lm, Recipe(data=str(file), **recipe))
        runs.append(ConcurrentRun(file.stem, TaskEvaluator(run, engine, run.task("run"), run.initial_prompt())))
    groups = [ConcurrentTrainer(lm, runs)] if settings["together"] else [ConcurrentTrainer(lm, [run]) for run in runs]

    def step() -> float:
        """Seconds of a step of all users."""
        began = time.perf_counter()
        for group in groups:
            group.step()
        return time.perf_counter() - began

    return {"step": step, "save": lambda path: _save(runs, path)}


def _save(runs: list[ConcurrentRun], path: str) -> None:
    """The prefix of every user as it stands."""
    prefixes = {run.name: run.prompt.front().prefix for run in runs}
    tensors = {
        f"{name}.{layer}.{what}": tensor.detach().contiguous()
        for name, prefix in prefixes.items()
        if prefix is not None
        for what, layers in (("key", prefix.keys), ("value", prefix.values))
        for layer, tensor in enumerate(layers)
    }
    save_file(tensors, path)
