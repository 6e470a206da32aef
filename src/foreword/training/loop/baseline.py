"""Figures of a run: what the model says before anything is learned, and which template serves a task best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.evaluate import EvaluationJob, evaluate, evaluate_all
from foreword.evaluation.report import Report
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.calibration import calibrated
from foreword.training.methods.base import Say
from foreword.training.run import Run

# Evaluation asks for short answers and labels; serving is where a large cache pays.
CACHE_BYTES = 256 << 20


def baseline_report(run: Run, engine: EngineProtocol, say: Say) -> dict[str, float]:
    """Figures without anything learned, of the best template; every template's are said."""
    if run.material.head_labels:
        share = majority_share(run.material)
        say(f"always the most frequent label: accuracy {share:.3f} on {len(run.material.eval_rows)} rows")
        return {"accuracy": share}
    found = []
    for template in run.material.templates:
        plain = template.plain()
        report = report_of(run, engine, _ready(run, engine, replace(run.task("run"), template=plain.source)))
        which = f" ({plain.source!r})" if len(run.material.templates) > 1 else ""
        say(f"without a prefix{which}: {format_metrics(report.metrics)} on {report.n} rows")
        found.append(report.metrics)
    return max(found, key=selection_score)


def majority_share(material: TrainingData) -> float:
    """Share of the evaluation rows' answers that the most frequent label of the training rows is."""
    seen = Counter(place for row in material.train_rows for place in material.answers(row))
    most, _ = seen.most_common(1)[0]
    held = [place for row in material.eval_rows for place in material.answers(row)]
    return held.count(most) / len(held)


def best_task(run: Run, engine: EngineProtocol, tasks: Sequence[Task]) -> tuple[Task, Report]:
    """The task that scores best on the evaluation rows, calibrated if that is asked for."""
    return best_task_of_each(engine, [(run, tasks)])[0]


def best_task_of_each(engine: EngineProtocol, asked: Sequence[tuple[Run, Sequence[Task]]]) -> list[tuple[Task, Report]]:
    """`best_task` for several runs, measured together."""
    ready = [(run, [_ready(run, engine, task) for task in tasks]) for run, tasks in asked]
    trials = [
        EvaluationJob(task, run.material.eval_rows, run.material.label_field) for run, tasks in ready for task in tasks
    ]
    reports = iter(evaluate_all(engine, trials))
    found = [[(task, next(reports)) for task in tasks] for _, tasks in ready]
    return [max(pairs, key=lambda pair: selection_score(pair[1].metrics)) for pairs in found]


def report_of(run: Run, engine: EngineProtocol, task: Task) -> Report:
    """The task on all evaluation rows, as it will be served."""
    return evaluate(engine, task, run.material.eval_rows, label_field=run.material.label_field)


def headline_metric(metrics: Mapping[str, float]) -> float:
    """The figure that tasks are compared by."""
    return next(iter(metrics.values()))


def selection_score(metrics: Mapping[str, float]) -> float:
    """What templates are chosen by: the first figure, but for texts how probable the right ones are, since a first run
    writes few of them word for word."""
    return -metrics["perplexity"] if "perplexity" in metrics else headline_metric(metrics)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Figures for a person."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _ready(run: Run, engine: EngineProtocol, task: Task) -> Task:
    return calibrated(engine, task) if run.recipe.calibrate else task
