"""`SharedInit`: what is learned on everybody's rows, before each task goes on with its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.core import KVPrefix, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.text.rows import Row
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.distributed import barrier, is_main_process
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.many.config import MultiTaskConfig
from foreword.training.recipe import Recipe
from foreword.training.run import VALIDATION_ROWS, Run

NAME = "everybody"
# As many as the longest default run sees; more would only take memory.
ROWS = 5120


@dataclass(frozen=True)
class SharedInit:
    """What all tasks have from everybody.

    Attributes:
        start: what every task starts from; ``None`` if each starts by itself.
        behind: what stands in front of every task's own virtual tokens, as it is; ``None`` for nothing.
    """

    start: Task | None = None
    behind: KVPrefix | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """What a task remembers of it."""
        found = self.start.prefix if self.start is not None else self.behind
        return {"shared_sha256": found.digest} if found is not None else {}


def shared_init(
    lm: LanguageModel,
    plan: MultiTaskConfig,
    engine: EngineProtocol,
    material: Callable[[str], TrainingData],
    names: Sequence[str],
    folder: Path,
    say: Say,
) -> SharedInit:
    """Learn what the plan shares, or take it from the run folder; the first process learns for all.

    Args:
        material: the rows of a task.
        names: whose rows are learned from.
        folder: of the run.

    Raises TrainingError if it cannot be learned.
    """
    if not (plan.shared_init or plan.shared_length):
        return SharedInit()
    file = folder / "shared.safetensors"
    if is_main_process() and not file.is_file():
        recipe = replace(plan.recipe, length=plan.shared_length or plan.recipe.length)
        run = Run.from_recipe(lm, recipe, data=_everybody(lm, recipe, [*names], material))
        say(f"learning from everybody first: {len(run.data.train_rows)} rows of {len(names)} tasks")
        _save(_learned(run, engine, say), file)
    barrier()
    task = _load(lm, plan, file)
    return SharedInit(behind=task.prefix) if plan.shared_length else SharedInit(start=task)


def _learned(run: Run, engine: EngineProtocol, say: Say) -> Task:
    lane = ConcurrentRun(NAME, TaskEvaluator(run, engine, run.task(NAME), run.initial_prompt()))
    for _ in ConcurrentTrainer(run.lm, [lane]).train():
        if "eval_loss" in lane.log_history[-1]:
            say(f"everybody: step {lane.step}/{lane.steps}  eval_loss {lane.log_history[-1]['eval_loss']:.4g}")
    if lane.error:
        raise TrainingError(f"what everybody shares cannot be learned: {lane.error}.")
    lane.load_best()
    return lane.prompt.to_task(run.lm, lane.evaluator.task)


def _everybody(
    lm: LanguageModel, recipe: Recipe, names: list[str], material: Callable[[str], TrainingData]
) -> TrainingData:
    """Some rows of each, so that none counts more; those that somebody is evaluated on are never learned from."""
    random.Random(recipe.seed).shuffle(names)
    rows: list[Row] = []
    held: list[Row] = []
    for name in names:
        own = material(name)
        rows += own.train_rows[: -(-ROWS // len(names))]
        held += own.eval_rows[: -(-VALIDATION_ROWS // len(names))]
    return TrainingData.from_rows(recipe, rows[:ROWS], held[:VALIDATION_ROWS], vocabulary=lm.vocabulary)


def _save(task: Task, file: Path) -> None:
    """Keep its tensors; seen whole or not at all."""
    prefix = task.prefix
    tensors: dict[str, Tensor] = {"soft": task.soft.contiguous()} if task.soft is not None else {}
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors |= {f"{layer}.key": key.contiguous(), f"{layer}.value": value.contiguous()}
    partial = file.with_name(f".{file.name}")
    try:
        save_file(tensors, partial)
        partial.replace(file)
    except OSError as error:
        raise TrainingError(f"{file} cannot be written: {error.strerror}; use another --out.") from error


def _load(lm: LanguageModel, plan: MultiTaskConfig, file: Path) -> Task:
    tensors = load_file(file)
    layers = range(len(lm.identity.layers))
    keys = tuple(tensors[f"{layer}.key"] for layer in layers)
    values = tuple(tensors[f"{layer}.value"] for layer in layers)
    prefix = KVPrefix(lm.identity, keys, values, offset=keys[0].shape[1])
    return Task(NAME, plan.recipe.method, prefix.to(device=lm.device), soft=tensors.get("soft"))
