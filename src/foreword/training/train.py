"""`train`: from rows to a task that is ready to publish."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.evaluation.curves import write_curves
from foreword.evaluation.evaluate import Report, evaluate
from foreword.models import LanguageModel
from foreword.training.advice import advice
from foreword.training.calibration import calibrated
from foreword.training.checkpointing import checkpointed
from foreword.training.folder import RunFolder
from foreword.training.learned import Learned
from foreword.training.material import Material
from foreword.training.progress import ProgressLines
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.score import Scorer
from foreword.training.trainer import PrefixTrainer
from foreword.training.warm import WarmStart

# Evaluation asks for short answers and labels; serving is where a large cache pays.
CACHE_BYTES = 256 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        task: lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: of the same template without anything learned; what always saying the most frequent label gives, where
            a head has no answer before it has learned.
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
    transfer: Task | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> Outcome:
    """Learn a prompt for a frozen model.

    Args:
        lm: the base model; its weights do not change.
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
    first = run.learned() if run.learns else None  # what cannot start is said before anything is written
    warm = WarmStart.of(run)
    with Engine(lm, cache_bytes=CACHE_BYTES) as engine:
        folder = RunFolder.open(run)
        before = _before(run, engine, say)
        task, parameters = run.task(name), 0
        if first is not None:
            if recipe.warm_start and folder.newest_checkpoint() is None:
                warm.learn(first, say)
            task, parameters = _members(run, engine, task, first, folder, say)
        task, after = _best(run, engine, task)
        if run.learns:
            say(f"with {_what(task)} ({run.method.name}): {_shown(after.metrics)} on {after.n} rows")
        for line in advice(run, folder.history(), before, after.metrics):
            say(line)
    return _outcome(task, before, after, parameters, folder)


def _before(run: Run, engine: Engine, say: Say) -> dict[str, float]:
    """Figures without anything learned, of the best template; every template's are said."""
    if run.material.head_labels:
        share = majority_share(run.material)
        say(f"always the most frequent label: accuracy {share:.3f} on {len(run.material.eval_rows)} rows")
        return {"accuracy": share}
    found = []
    for template in run.material.templates:
        plain = template.plain()
        report = _report(run, engine, _ready(run, engine, replace(run.task("run"), template=plain.source)))
        which = f" ({plain.source!r})" if len(run.material.templates) > 1 else ""
        say(f"without a prefix{which}: {_shown(report.metrics)} on {report.n} rows")
        found.append(report.metrics)
    return max(found, key=_first)


def majority_share(material: Material) -> float:
    """Share of the evaluation rows' answers that the most frequent label of the training rows is."""
    seen = Counter(place for row in material.train_rows for place in material.answers(row))
    most, _ = seen.most_common(1)[0]
    held = [place for row in material.eval_rows for place in material.answers(row)]
    return held.count(most) / len(held)


def _members(run: Run, engine: Engine, task: Task, first: Learned, folder: RunFolder, say: Say) -> tuple[Task, int]:
    """Learn every member of the ensemble, mostly one; the others' prefixes stand beside the first one's."""
    made, parameters = [], 0
    for index in range(run.recipe.members):
        member = run if index == 0 else run.with_seed(run.recipe.seed + index)
        learned = first if index == 0 else member.learned()
        _learn(Scorer(member, engine, task, learned), folder if index == 0 else folder.member(index + 1))
        made.append(learned.become(run.lm, task))
        parameters += learned.parameter_count
        if run.recipe.members > 1:
            say(f"member {index + 1}: {_shown(_report(run, engine, made[-1]).metrics)}")
    return replace(made[0], members=tuple(member.prefix for member in made[1:])), parameters


def _learn(scorer: Scorer, folder: RunFolder) -> None:
    """Leave the best values seen on the held-out rows in what the scorer watches."""
    recipe = scorer.run.recipe
    with ProgressLines() as progress, checkpointed(scorer.run.lm, recipe.checkpointing):
        trainer = PrefixTrainer(scorer.run, scorer, folder, progress)
        checkpoint = folder.newest_checkpoint() if recipe.resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if trainer.is_world_process_zero():
            folder.write_history(trainer.state.log_history)
            write_curves(trainer.state.log_history, folder.path / "curves.png")


def _best(run: Run, engine: Engine, task: Task) -> tuple[Task, Report]:
    """The task with the template that scores best on the evaluation rows."""
    templates = run.material.templates if run.learns else tuple(t.plain() for t in run.material.templates)
    tasks = [_ready(run, engine, replace(task, template=template.source)) for template in templates]
    found = [(each, _report(run, engine, each)) for each in tasks]
    return max(found, key=lambda pair: _first(pair[1].metrics))


def _ready(run: Run, engine: Engine, task: Task) -> Task:
    return calibrated(engine, task) if run.recipe.calibrate else task


def _report(run: Run, engine: Engine, task: Task) -> Report:
    return evaluate(engine, task, run.material.eval_rows, label_field=run.material.label_field)


def _outcome(task: Task, before: dict[str, float], after: Report, parameters: int, folder: RunFolder) -> Outcome:
    figures = {"metrics": after.metrics, "metrics_before": before}
    folder.write_summary({"n": after.n, **figures, "trained_parameters": parameters, "task_bytes": task.nbytes})
    task = replace(task, provenance={**task.provenance, **figures})
    return Outcome(task, after.n, after.metrics, before, parameters, folder.path)


def _first(metrics: dict[str, float]) -> float:
    """The figure that tasks are compared by."""
    return next(iter(metrics.values()))


def _what(task: Task) -> str:
    """What was learned, for a person."""
    parts = []
    soft = len(task.soft) if task.soft is not None and not task.prefix.length else 0
    if length := task.prefix.length or soft:
        parts.append(f"{length} virtual tokens")
    if task.adapter is not None:
        parts.append(f"an adapter of rank {task.adapter.rank}")
    if task.head is not None:
        parts.append(f"a head of {len(task.head.labels)} labels")
    if task.members:
        parts.append(f"{1 + len(task.members)} members")
    return " and ".join(parts) or "nothing"


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
