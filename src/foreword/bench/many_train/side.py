"""One side: the lanes of all users, stepped together or one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from foreword.engine.encoder_decoder import evaluation_engine
from foreword.engine.protocol import EngineProtocol
from foreword.models import LanguageModel
from foreword.models.load import load_model
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.recipe import Recipe
from foreword.training.run import Run


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Load the model and make everything ready for the first step."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    engine = evaluation_engine(lm, reuse=False)
    lanes = [_lane(lm, engine, settings, file) for file in sorted(Path(settings["users"]).glob("*.jsonl"))]
    groups = (
        [ConcurrentTrainer(lm, lanes)] if settings["together"] else [ConcurrentTrainer(lm, [lane]) for lane in lanes]
    )

    def step() -> dict[str, float]:
        began = time.perf_counter()
        for group in groups:
            group.step()
        return {"seconds": time.perf_counter() - began}

    return {"step": step, "save": lambda path: _save(lanes, path), "tokens": lambda: sum(map(_tokens, lanes))}


def _lane(lm: LanguageModel, engine: EngineProtocol, settings: Mapping[str, Any], file: Path) -> ConcurrentRun:
    recipe = Recipe(
        data=str(file),
        method=settings["method"],
        template=settings["template"],
        verbalizer=settings["verbalizer"],
        length=settings["length"],
        batch_size=settings["batch_size"],
        max_steps=settings["max_steps"],
        seed=settings["seed"],
    )
    run = Run.from_recipe(lm, recipe)
    return ConcurrentRun(file.stem, TaskEvaluator(run, engine, run.task("run"), run.initial_prompt()))


def _tokens(lane: ConcurrentRun) -> int:
    """Of the next step's examples."""
    return sum(example.num_tokens for example in lane.next_batch)


def _save(lanes: list[ConcurrentRun], path: str) -> None:
    """The prefix of every user as it stands."""
    prefixes = {lane.name: lane.prompt.front().prefix for lane in lanes}
    save_file(
        {
            f"{name}.{layer}.{what}": tensor.detach().contiguous()
            for name, prefix in prefixes.items()
            if prefix is not None
            for what, tensors in (("key", prefix.keys), ("value", prefix.values))
            for layer, tensor in enumerate(tensors)
        },
        path,
    )
