"""`train`: from rows to a task that is ready to publish."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from foreword.core import KVPrefix, Task
from foreword.engine.engine import Engine
from foreword.evaluation.evaluate import Report, evaluate
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.lower import lower
from foreword.training.folder import RunFolder
from foreword.training.progress import ProgressLines
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.score import Scorer
from foreword.training.trainer import PrefixTrainer

# Evaluation asks for short answers and labels; serving is where a large cache pays.
CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        task: lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: of the same template without a prefix.
        trained_parameters: how many numbers were learned.
        folder: the run folder.
    """

    task: Task
    n: int
    metrics: dict[str, float]
    before: dict[str, float]
    trained_parameters: int
    folder: Path


def train(
    lm: LanguageModel,
    recipe: Recipe,
    *,
    name: str = "run",
    transfer: KVPrefix | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Outcome:
    """Learn a prompt for a frozen model.

    Args:
        lm: the base model; its weights do not change.
        recipe: data, method and hyper-parameters.
        name: of the task.
        transfer: the prefix of the task that ``init="task:NAME"`` names.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in the recipe or the data is wrong.
        ModelMismatch: ``transfer`` was made for another model.
        TrainingError: the run folder holds another run, or learning went astray.
    """
    run = Run.of(lm, recipe, transfer)
    task, encoder = run.task(name), run.encoder()
    with Engine(lm, cache_bytes=CACHE_BYTES) as engine:
        folder = RunFolder.open(run)
        before = after = _report(run, engine, task)
        say(f"without a prefix: {_shown(before)} on {before.n} rows")
        if run.learns:
            _learn(run, Scorer(run, engine, task, encoder), folder)
            task = replace(task, prefix=lower(lm, encoder))
            after = _report(run, engine, task)
            say(f"with {task.prefix.length} virtual tokens ({run.method.name}): {_shown(after)} on {after.n} rows")
            if next(iter(after.metrics.values())) < next(iter(before.metrics.values())):
                say("the prefix is worse than none; try more rows, more --max-steps or a smaller --lr.")
    return _outcome(task, before, after, encoder, folder)


def _report(run: Run, engine: Engine, task: Task) -> Report:
    return evaluate(engine, task, run.material.eval_rows, label_field=run.material.label_field)


def _learn(run: Run, scorer: Scorer, folder: RunFolder) -> None:
    """Leave the best values seen on the held-out rows in the scorer's encoder."""
    with ProgressLines() as progress:
        trainer = PrefixTrainer(run, scorer, folder, progress)
        checkpoint = folder.newest_checkpoint() if run.recipe.resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)


def _outcome(task: Task, before: Report, after: Report, encoder: PromptEncoder, folder: RunFolder) -> Outcome:
    figures = {"metrics": after.metrics, "metrics_before": before.metrics}
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    folder.write_summary(
        {"n": after.n, **figures, "trained_parameters": parameters, "prefix_bytes": task.prefix.nbytes}
    )
    task = replace(task, provenance={**task.provenance, **figures})
    return Outcome(task, after.n, after.metrics, before.metrics, parameters, folder.path)


def _shown(report: Report) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in report.metrics.items())
