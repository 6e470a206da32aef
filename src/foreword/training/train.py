"""`train`: from rows to a task that is ready to publish."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from foreword.core import Task
from foreword.engine.encoder_decoder import evaluation_engine
from foreword.engine.protocol import EngineProtocol
from foreword.models import LanguageModel
from foreword.training.loop.advice import advice
from foreword.training.loop.baseline import CACHE_BYTES, baseline_report, best_task, format_metrics
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods import ensemble
from foreword.training.methods.autoprompt import autoprompt
from foreword.training.methods.base import MethodResult, Say
from foreword.training.methods.pet import pet
from foreword.training.recipe import Recipe
from foreword.training.run import Run


class TrainingMethod(Protocol):
    """A module that knows how to learn."""

    def check(self, run: Run) -> None:
        """Raise UsageError or its kin for what it cannot learn, before anything is written."""
        ...

    def learn(
        self, run: Run, engine: EngineProtocol, task: Task, start: TrainablePrompt, folder: RunDir, say: Say
    ) -> MethodResult:
        """Learn, and measure what was learned.

        Args:
            engine: serves the run's model.
            task: before anything is learned.
            start: the initial values.
            folder: gets checkpoints and history.
        """
        ...


METHODS: dict[str, TrainingMethod] = {"pet": pet, "autoprompt": autoprompt}
"""Methods that need more than an encoder and an optimizer, which is all that `ensemble` knows."""


@dataclass(frozen=True)
class TrainResult:
    """What a run gives.

    Attributes:
        task: lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: of the same template without anything learned; what always saying the most frequent label gives, where
            a head has no answer before it has learned.
        trained_parameters: how many numbers were learned.
        folder: the run folder.
        model: folder of a changed model, which the task belongs to; ``None`` if the model is as it was.
    """

    task: Task
    n: int
    metrics: dict[str, float]
    before: dict[str, float]
    trained_parameters: int
    folder: Path
    model: Path | None = None


def train(
    lm: LanguageModel,
    recipe: Recipe,
    *,
    name: str = "run",
    transfer: Task | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> TrainResult:
    """Learn a prompt for a frozen model.

    Args:
        lm: the base model; its weights are the same afterwards.
        recipe: data, method and hyper-parameters.
        name: of the task.
        transfer: the task that ``init="task:NAME"`` names.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in the recipe or the data is wrong.
        ModelMismatch: ``transfer`` was made for another model.
        TrainingError: the run folder holds another run, or learning went astray.
    """
    run = Run.of(lm, recipe, transfer)
    way = METHODS.get(run.method.name, ensemble)
    way.check(run)
    start = run.learned() if run.learns else None  # what cannot start is said before anything is written
    # What is learned may be the model itself: keys of its earlier weights must not answer for it.
    with evaluation_engine(lm, cache_bytes=CACHE_BYTES, reuse=False) as engine:
        folder = RunDir.open(run)
        untaught = baseline_report(run, engine, say)
        if start is not None:
            result = way.learn(run, engine, run.task(name), start, folder, say)
            say(
                f"with {_what(result)} ({run.method.name}): "
                f"{format_metrics(result.report.metrics)} on {result.report.n} rows"
            )
        else:
            result = _manual(run, engine, run.task(name))
        if missing := result.report.unavailable_metrics:
            say(f"{', '.join(missing)} need more packages: pip install 'foreword[eval]'")
        for line in advice(run, folder.history(), untaught, result.report.metrics):
            say(line)
    return _outcome(result, untaught, folder)


def _manual(run: Run, engine: EngineProtocol, task: Task) -> MethodResult:
    """The best template as it is."""
    tasks = [replace(task, template=template.plain().source) for template in run.material.templates]
    return MethodResult(*best_task(run, engine, tasks), parameters=0)


def _outcome(result: MethodResult, untaught: dict[str, float], folder: RunDir) -> TrainResult:
    task, report = result.task, result.report
    figures = {"metrics": report.metrics, "metrics_before": untaught}
    folder.write_summary({"n": report.n, **figures, "trained_parameters": result.parameters, "task_bytes": task.nbytes})
    task = replace(task, provenance={**task.provenance, **figures})
    return TrainResult(task, report.n, report.metrics, untaught, result.parameters, folder.path, result.model)


def _what(result: MethodResult) -> str:
    """What was learned, for a person."""
    task, parts = result.task, []
    if result.model is not None:
        parts.append("all weights")
    soft = len(task.soft) if task.soft is not None and not task.prefix.length else 0
    if length := task.prefix.length or soft:
        parts.append(f"{length} virtual tokens")
    if task.adapter is not None:
        parts.append(f"an adapter of rank {task.adapter.rank}")
    if task.head is not None:
        parts.append(f"a head of {len(task.head.labels)} labels")
    if task.members:
        parts.append(f"{1 + len(task.members)} members")
    return " and ".join(parts) or f"{result.parameters} tokens in the template"
