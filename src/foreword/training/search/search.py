"""`search`: from a recipe and what to vary in it to the task that does best, in one run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.core import Task
from foreword.engine.encoder_decoder import evaluator
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.evaluation.curves import write_curves
from foreword.home import default_run
from foreword.models import LanguageModel
from foreword.progress import Progress
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.baseline import CACHE_BYTES, baseline_report, best_task, format_metrics
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.loop.run_dir import RunDir
from foreword.training.methods.base import MethodResult, Say
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.search.batching_stats import halving
from foreword.training.search.config import SearchConfig, varied
from foreword.training.search.plots import write_plots
from foreword.training.search.space import Point
from foreword.training.search.trial import Trial, ranking
from foreword.training.search.trial_scheduler import TrialFactory, TrialScheduler

TRIALS = "trials.jsonl"
PICTURE = "trials.png"
# Runs that are read before anything starts, so that what cannot be learned is said then.
READ = 64
# What decides whether a point can be learned at all.
_STRUCTURE = ("method", "length", "init", "init_text", "rank", "encoder", "projection", "freeze_first")


@dataclass(frozen=True)
class SearchResult:
    """What a search gives.

    Attributes:
        task: the winner's, lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: of the same template without anything learned.
        trained_parameters: how many numbers the winner learned.
        recipe: the winner's: `foreword.training.train` gives the same task with it.
        winner: its trial.
        trials: all, the best first.
        savings: what ``halving`` and ``batching`` saved, apart.
        folder: the run folder, with the trials as JSONL and as a picture.
        seconds: of this process, from reading the data to the winner's figures.
    """

    task: Task
    n: int
    metrics: dict[str, float]
    before: dict[str, float]
    trained_parameters: int
    recipe: Recipe
    winner: Trial
    trials: list[Trial]
    savings: dict[str, Any]
    folder: Path
    seconds: float


def search(
    lm: LanguageModel,
    recipe: Recipe,
    plan: SearchConfig,
    *,
    name: str = "run",
    transfers: Mapping[str, Task] | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> SearchResult:
    """Learn with many settings side by side, and keep what does best on the held-out rows.

    The trials learn in one ragged batch, each with an optimizer, a schedule and evaluations of its own, so that the
    winner is what `foreword.training.train` gives with its recipe.

    Args:
        lm: the base model; its weights are the same afterwards.
        recipe: what all trials have in common.
        plan: what they differ in, and how they compete.
        name: of the task.
        transfers: the tasks that ``init: task:NAME`` names, by name.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in the recipe, the plan or the data is wrong.
        TrainingError: the run folder holds another search, or no trial could be learned.
    """
    began = time.perf_counter()
    require_single_process("a search")
    plan.check(recipe)
    entry = TrialFactory(lm, recipe, plan, TrainingData.read(recipe, vocabulary=lm.vocabulary), transfers or {})
    first = _read(entry)
    with evaluator(lm, cache_bytes=CACHE_BYTES, reuse=False) as engine:
        settings = {**first.settings(), **plan.to_json(), **dict.fromkeys(plan.space.domains)}
        settings["transfer"] = {name: task.prefix.digest for name, task in entry.transfers.items()}
        out = Path(recipe.out or default_run("search"))
        folder = RunDir.at(out, settings, resume=recipe.resume)
        untaught = baseline_report(first, engine, say)
        contest = TrialScheduler(entry, first, engine, folder, say)
        count = min(plan.trials, plan.space.size or plan.trials)
        with Progress("searching", count, "trials") as progress, gradient_checkpointing(lm, recipe.checkpointing):
            contest.run(lambda: _keep(contest, folder, progress))
        lane = contest.champion
        if lane is None:
            raise TrainingError("no trial could be learned to its end.")
        result = _result(lane, engine, name)
    found = _found(contest, lane, result, untaught, folder, time.perf_counter() - began)
    say(f"trial {found.winner.number} is best: {format_metrics(found.metrics)} on {found.n} rows")
    _write(found, lane)
    return found


def _found(
    contest: TrialScheduler,
    lane: ConcurrentRun,
    result: MethodResult,
    untaught: dict[str, float],
    folder: RunDir,
    seconds: float,
) -> SearchResult:
    winner, report = contest.trials[int(lane.name)], result.report
    figures = {"metrics": report.metrics, "metrics_before": untaught}
    found_by = {"trials": len(contest.trials), "winner": winner.number, "varied": winner.point}
    return SearchResult(
        task=replace(result.task, provenance={**result.task.provenance, **figures, "search": found_by}),
        n=report.n,
        metrics=report.metrics,
        before=untaught,
        trained_parameters=result.parameters,
        recipe=lane.run.recipe,
        winner=winner,
        trials=ranking(contest.trials),
        savings={"halving": halving(contest.trials), "batching": contest.savings.batching()},
        folder=folder.path,
        seconds=seconds,
    )


def _write(found: SearchResult, lane: ConcurrentRun) -> None:
    """The winner's history, a picture of all trials, and the summary, in the run folder."""
    folder = RunDir(found.folder)
    folder.write_history(lane.log_history)
    write_curves(lane.log_history, folder.path / "curves.png")
    write_plots(sorted(found.trials, key=lambda trial: trial.number), found.winner, folder.path / PICTURE)
    figures = {"metrics": found.metrics, "metrics_before": found.before}
    folder.write_summary({"n": found.n, **figures, "winner": found.winner.to_json(), "savings": found.savings})


def _read(entry: TrialFactory) -> Run:
    """Read the rows as every kind of trial would, and make its initial values; gives the first run."""
    seen: list[Point] = []
    first: Run | None = None
    for point in entry.plan.checked():
        structure = {key: value for key, value in point.items() if key in _STRUCTURE}
        if structure not in seen and len(seen) < READ:
            seen.append(structure)
            run = entry.run(point, first)
            with varied(point):
                run.initial_prompt()
            first = first or run
    assert first is not None  # a space has at least one point
    return first


def _result(lane: ConcurrentRun, engine: EngineProtocol, name: str) -> MethodResult:
    """The task of the best trial, with the template that scores best, as in `foreword.training.methods.gradient_descent`."""
    lane.load_best()
    run = lane.run
    made = lane.prompt.to_task(run.lm, run.task(name))
    tasks = [replace(made, template=template.source) for template in run.data.templates]
    return MethodResult(*best_task(run, engine, tasks), parameters=lane.prompt.num_trainable_parameters)


def _keep(contest: TrialScheduler, folder: RunDir, progress: Progress) -> None:
    """What is known of the trials, for whoever looks on."""
    progress.reach(sum(trial.state != "learning" for trial in contest.trials))
    lines = [json.dumps(trial.to_json(), ensure_ascii=False) for trial in contest.trials]
    folder.write_text(TRIALS, "".join(f"{line}\n" for line in lines))
