"""`train`: from rows to a task that is ready to publish."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from foreword.core import Task
from foreword.core.overview import Overview, WithOverview, metrics_line
from foreword.engine.engine import Engine
from foreword.engine.protocol import EngineProtocol
from foreword.home import default_run_dir
from foreword.models import LanguageModel
from foreword.progress import Progress, Say
from foreword.text.template import Template
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.advice import advice
from foreword.training.loop.baseline import baseline_metrics
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES
from foreword.training.loop.gradient_check import check_gradients
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.selection import best_task, format_metrics
from foreword.training.methods.base import MethodResult
from foreword.training.methods.registry import training_method
from foreword.training.recipe import Recipe
from foreword.training.run import Run


@dataclass(frozen=True, repr=False)
class TrainResult(WithOverview):
    """A trained task, and its metrics beside those of the baseline.

    Attributes:
        task: lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: of the best template without a prompt; of the most frequent label, where a head has no answer untrained.
        trained_parameters: count of trained numbers.
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

    def overview(self) -> Overview:
        """Metrics before and after, what was trained, and where the run is."""
        return Overview(
            f"TrainResult of task {self.task.ref!r}",
            {
                "metrics": f"{metrics_line(self.metrics, self.before)} on {self.n} rows",
                "trained": f"{self.trained_parameters:,} parameters by {self.task.method}, {self.task.nbytes:,} bytes",
                "run": self.folder,
                "model": self.model,
            },
        )


def train(
    lm: LanguageModel,
    recipe: Recipe,
    *,
    name: str = "run",
    transfer: Task | None = None,
    data: TrainingData | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> TrainResult:
    """Train a prompt for a frozen model.

    Args:
        lm: the base model; its weights are the same afterwards.
        recipe: data, method and hyper-parameters.
        name: of the task.
        transfer: the task that ``init="task:NAME"`` names.
        data: the data of the recipe, if they have been read already.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in the recipe or the data is wrong.
        ModelMismatch: ``transfer`` was made for another model.
        TrainingError: the run folder holds another run, or training diverged.
    """
    with Progress("reading the data"):
        run = Run.from_recipe(lm, recipe, transfer, data)
    for warning in run.data.warnings:
        say(f"warning: {warning}")
    method = training_method(run.method.name)
    method.check(run)
    prompt = run.initial_prompt() if run.learns else None  # fails before anything is written
    if prompt is not None:
        check_gradients(run, prompt)
    # PET may train the model itself: keys of its earlier weights must not answer for it.
    with Engine(lm, cache_bytes=EVAL_CACHE_BYTES, reuse=False) as engine:
        run_dir = RunDir.open(
            recipe.out or default_run_dir(run.method.name),
            run.settings(),
            resume=recipe.resume,
            used=run.used(),
            steps=run.steps,
        )
        with Progress(f"evaluating {len(run.data.eval_rows)} rows without a prefix"):
            baseline = baseline_metrics(run, engine, say)
        if prompt is not None:
            result = method.train(run, engine, run.task(name), prompt, run_dir, say)
            say(
                f"with {_trained_parts(result)} ({run.method.name}): "
                f"{format_metrics(result.report.metrics)} on {result.report.n} rows"
            )
        else:
            result = _untrained(run, engine, run.task(name))
        if missing := result.report.unavailable_metrics:
            say(f"{', '.join(missing)} need more packages: pip install 'foreword[eval]'")
        for line in advice(run, run_dir.read_history(), baseline, result.report.metrics):
            say(line)
    return _train_result(result, baseline, run_dir)


def _untrained(run: Run, engine: EngineProtocol, task: Task) -> MethodResult:
    """The best template, for a method without trainable values."""
    return MethodResult(*best_task(run, engine, run.data.plain_tasks(task)), trained_parameters=0)


def _train_result(result: MethodResult, baseline: dict[str, float], run_dir: RunDir) -> TrainResult:
    """The result of the run, whose summary is written and whose metrics the task carries along."""
    task, report, parameters = result.task, result.report, result.trained_parameters
    metrics = {"metrics": report.metrics, "metrics_before": baseline}
    run_dir.write_summary({"n": report.n, **metrics, "trained_parameters": parameters, "task_bytes": task.nbytes})
    task = replace(task, provenance={**task.provenance, **metrics})
    return TrainResult(task, report.n, report.metrics, baseline, parameters, run_dir.path, result.model)


def _trained_parts(result: MethodResult) -> str:
    """The trained parts of the task, in words."""
    task, parts = result.task, []
    if result.model is not None:
        parts.append("all weights")
    soft = len(task.soft) if task.soft is not None and not task.prefix.length else 0
    if task.soft is not None and task.prefix.length and task.template is not None:
        soft = Template.parse(task.template).num_inner_soft_tokens(causal=True)  # in rows, beside those of the prefix
    if length := task.prefix.length + soft:
        parts.append(f"{length} virtual tokens")
    if task.adapter is not None:
        parts.append(f"an adapter of rank {task.adapter.rank}")
    if task.head is not None:
        number = task.head.problem_type == "regression"
        parts.append("a head of one number" if number else f"a head of {len(task.head.labels)} labels")
    if task.members:
        parts.append(f"{1 + len(task.members)} members")
    return " and ".join(parts) or f"{result.trained_parameters} tokens in the template"
