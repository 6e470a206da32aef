"""`SharedInit`: a prefix learned on the rows of all tasks, before each learns on its own."""

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
from foreword.training.loop.atomic_write import atomic_write
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.distributed import barrier, is_main_process
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.many.config import MultiTaskConfig
from foreword.training.recipe import Recipe
from foreword.training.run import VALIDATION_ROWS, Run

SHARED_NAME = "everybody"
# As many as the longest default run sees; more would only take memory.
MAX_ROWS = 5120


@dataclass(frozen=True)
class SharedInit:
    """The shared part of all tasks.

    Attributes:
        init_task: the task that every task starts from (``--shared-init``).
        shared_prefix: in front of every task's own virtual tokens (``--shared-length``).
    """

    init_task: Task | None = None
    shared_prefix: KVPrefix | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Entries of every task's provenance."""
        prefix = self.init_task.prefix if self.init_task is not None else self.shared_prefix
        return {"shared_sha256": prefix.digest} if prefix is not None else {}


def shared_init(
    lm: LanguageModel,
    config: MultiTaskConfig,
    engine: EngineProtocol,
    training_data: Callable[[str], TrainingData],
    names: Sequence[str],
    folder: Path,
    say: Say,
) -> SharedInit:
    """Learn the shared part, or read it from the run folder; the main process learns it for all.

    Args:
        training_data: the examples of a task, by its name.
        names: of the tasks whose rows are used.
        folder: of the run.

    Raises TrainingError if it cannot be learned.
    """
    if not (config.shared_init or config.shared_length):
        return SharedInit()
    file = folder / "shared.safetensors"
    if is_main_process() and not file.is_file():
        recipe = replace(config.recipe, length=config.shared_length or config.recipe.length)
        run = Run.from_recipe(lm, recipe, data=_pooled_data(lm, recipe, [*names], training_data))
        say(f"learning from everybody first: {len(run.data.train_rows)} rows of {len(names)} tasks")
        _save(_train_shared(run, engine, say), file)
    barrier()
    task = _load(lm, config, file)
    return SharedInit(shared_prefix=task.prefix) if config.shared_length else SharedInit(init_task=task)


def _train_shared(run: Run, engine: EngineProtocol, say: Say) -> Task:
    evaluator = TaskEvaluator(run, engine, run.task(SHARED_NAME), run.initial_prompt())
    trained = ConcurrentRun(SHARED_NAME, evaluator)
    for _ in ConcurrentTrainer(run.lm, [trained]).train():
        if "eval_loss" in trained.log_history[-1]:
            say(f"everybody: step {trained.step}/{trained.steps}  eval_loss {trained.log_history[-1]['eval_loss']:.4g}")
    if trained.error:
        raise TrainingError(f"what everybody shares cannot be learned: {trained.error}.")
    trained.load_best()
    return trained.prompt.to_task(run.lm, evaluator.task)


def _pooled_data(
    lm: LanguageModel, recipe: Recipe, names: list[str], training_data: Callable[[str], TrainingData]
) -> TrainingData:
    """Equally many rows of every task; rows that a task is evaluated on are never learned from."""
    random.Random(recipe.seed).shuffle(names)
    rows: list[Row] = []
    held: list[Row] = []
    for name in names:
        data = training_data(name)
        rows += data.train_rows[: -(-MAX_ROWS // len(names))]
        held += data.eval_rows[: -(-VALIDATION_ROWS // len(names))]
    return TrainingData.from_rows(recipe, rows[:MAX_ROWS], held[:VALIDATION_ROWS], vocabulary=lm.has_lm_head)


def _save(task: Task, file: Path) -> None:
    """Write its tensors atomically."""
    prefix = task.prefix
    tensors: dict[str, Tensor] = {"soft": task.soft.contiguous()} if task.soft is not None else {}
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors |= {f"{layer}.key": key.contiguous(), f"{layer}.value": value.contiguous()}
    for layer, states in enumerate(prefix.states):
        tensors |= {f"{layer}.{name}": state.contiguous() for name, state in states.items()}
    try:
        with atomic_write(file) as partial:
            save_file(tensors, partial)
    except OSError as error:
        raise TrainingError(f"{file} cannot be written: {error.strerror}; use another --out.") from error


def _load(lm: LanguageModel, config: MultiTaskConfig, file: Path) -> Task:
    tensors = load_file(file)
    # Soft prompts of an encoder-decoder are kept beside an empty prefix of its decoder alone.
    whole = f"{len(lm.identity.layers) - 1}.key" in tensors
    identity = lm.identity if whole else lm.identity.decoder_only
    layers = range(len(identity.layers))
    keys = tuple(tensors[f"{layer}.key"] for layer in layers)
    values = tuple(tensors[f"{layer}.value"] for layer in layers)
    named = tuple({state.name: f"{i}.{state.name}" for state in identity.layers[i].states} for i in layers)
    kept = any(name in tensors for layer in named for name in layer.values())
    states = tuple({name: tensors[key] for name, key in layer.items()} for layer in named) if kept else ()
    prefix = KVPrefix(identity, keys, values, offset=keys[0].shape[1], states=states)
    return Task(SHARED_NAME, config.recipe.method, prefix.to(device=lm.device), soft=tensors.get("soft"))
