"""Which template serves a trained prompt best, by all evaluation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.evaluate import EvaluationJob, evaluate, evaluate_all
from foreword.evaluation.report import Report
from foreword.training.loop.calibration import calibrated
from foreword.training.run import Run


def best_task(run: Run, engine: EngineProtocol, tasks: Sequence[Task]) -> tuple[Task, Report]:
    """The task with the best selection score on the evaluation rows, calibrated if the recipe says so."""
    return best_task_of_each(engine, [(run, tasks)])[0]


def best_task_of_each(
    engine: EngineProtocol, tasks_of_runs: Sequence[tuple[Run, Sequence[Task]]]
) -> list[tuple[Task, Report]]:
    """`best_task` for several runs, evaluated together."""
    ready = [(run, [prepared(run, engine, task) for task in tasks]) for run, tasks in tasks_of_runs]
    jobs = [
        EvaluationJob(task, run.data.eval_rows, run.data.label_field, run.data.learn_turns)
        for run, tasks in ready
        for task in tasks
    ]
    reports = iter(evaluate_all(engine, jobs))
    pairs_of_runs = [[(task, next(reports)) for task in tasks] for _, tasks in ready]
    return [max(pairs, key=lambda pair: selection_score(pair[1].metrics)) for pairs in pairs_of_runs]


def prepared(run: Run, engine: EngineProtocol, task: Task) -> Task:
    """The task, calibrated if the recipe says so."""
    return calibrated(engine, task) if run.recipe.calibrate else task


def evaluate_task(run: Run, engine: EngineProtocol, task: Task) -> Report:
    """Metrics of a task of the run on all evaluation rows."""
    data = run.data
    return evaluate(engine, task, data.eval_rows, label_field=data.label_field, learn_turns=data.learn_turns)


def headline_metric(metrics: Mapping[str, float]) -> float:
    """The first metric, which tasks are compared by."""
    return next(iter(metrics.values()))


def selection_score(metrics: Mapping[str, float]) -> float:
    """The score that templates are selected by: the first metric, but minus the perplexity of texts to generate, since
    a first run writes few of them word for word."""
    return -metrics["perplexity"] if "perplexity" in metrics else headline_metric(metrics)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Names and values for a line of output."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
