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
from foreword.engine.decoder import evaluator
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.evaluation.curves import write_curves
from foreword.home import default_run
from foreword.models import LanguageModel
from foreword.progress import Progress
from foreword.training.checkpointing import checkpointed
from foreword.training.figures import CACHE_BYTES, before, best, shown
from foreword.training.folder import RunFolder
from foreword.training.lane import Lane
from foreword.training.material import Material
from foreword.training.processes import check_alone
from foreword.training.recipe import Recipe
from foreword.training.result import Result, Say
from foreword.training.run import Run
from foreword.training.search.contest import Contest, Entry
from foreword.training.search.picture import write_picture
from foreword.training.search.plan import Plan, varied
from foreword.training.search.savings import halving
from foreword.training.search.space import Point
from foreword.training.search.trial import Trial, ranking

TRIALS = "trials.jsonl"
PICTURE = "trials.png"
# Runs that are read before anything starts, so that what cannot be learned is said then.
READ = 64
# What decides whether a point can be learned at all.
_STRUCTURE = ("method", "length", "init", "init_text", "rank", "encoder", "projection", "freeze_first")


@dataclass(frozen=True)
class Found:
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
    plan: Plan,
    *,
    name: str = "run",
    transfers: Mapping[str, Task] | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> Found:
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
    check_alone("a search")
    plan.check(recipe)
    entry = Entry(lm, recipe, plan, Material.read(recipe, vocabulary=lm.vocabulary), transfers or {})
    first = _read(entry)
    with evaluator(lm, cache_bytes=CACHE_BYTES, reuse=False) as engine:
        settings = {**first.settings(), **plan.to_json(), **dict.fromkeys(plan.space.domains)}
        settings["transfer"] = {name: task.prefix.digest for name, task in entry.transfers.items()}
        out = Path(recipe.out or default_run("search"))
        folder = RunFolder.at(out, settings, resume=recipe.resume)
        untaught = before(first, engine, say)
        contest = Contest(entry, first, engine, folder, say)
        count = min(plan.trials, plan.space.size or plan.trials)
        with Progress("searching", count, "trials") as progress, checkpointed(lm, recipe.checkpointing):
            contest.run(lambda: _keep(contest, folder, progress))
        lane = contest.champion
        if lane is None:
            raise TrainingError("no trial could be learned to its end.")
        result = _result(lane, engine, name)
    found = _found(contest, lane, result, untaught, folder, time.perf_counter() - began)
    say(f"trial {found.winner.number} is best: {shown(found.metrics)} on {found.n} rows")
    _write(found, lane)
    return found


def _found(
    contest: Contest, lane: Lane, result: Result, untaught: dict[str, float], folder: RunFolder, seconds: float
) -> Found:
    winner, report = contest.trials[int(lane.name)], result.report
    figures = {"metrics": report.metrics, "metrics_before": untaught}
    found_by = {"trials": len(contest.trials), "winner": winner.number, "varied": winner.point}
    return Found(
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


def _write(found: Found, lane: Lane) -> None:
    """The winner's history, a picture of all trials, and the summary, in the run folder."""
    folder = RunFolder(found.folder)
    folder.write_history(lane.log)
    write_curves(lane.log, folder.path / "curves.png")
    write_picture(sorted(found.trials, key=lambda trial: trial.number), found.winner, folder.path / PICTURE)
    figures = {"metrics": found.metrics, "metrics_before": found.before}
    folder.write_summary({"n": found.n, **figures, "winner": found.winner.to_json(), "savings": found.savings})


def _read(entry: Entry) -> Run:
    """Read the rows as every kind of trial would, and make its initial values; gives the first run."""
    seen: list[Point] = []
    first: Run | None = None
    for point in entry.plan.checked():
        structure = {key: value for key, value in point.items() if key in _STRUCTURE}
        if structure not in seen and len(seen) < READ:
            seen.append(structure)
            run = entry.run(point, first)
            with varied(point):
                run.learned()
            first = first or run
    assert first is not None  # a space has at least one point
    return first


def _result(lane: Lane, engine: EngineProtocol, name: str) -> Result:
    """The task of the best trial, in the template that serves it best, as `foreword.training.members` would."""
    lane.settle()
    run = lane.run
    made = lane.learned.become(run.lm, run.task(name))
    tasks = [replace(made, template=template.source) for template in run.material.templates]
    return Result(*best(run, engine, tasks), parameters=lane.learned.parameter_count)


def _keep(contest: Contest, folder: RunFolder, progress: Progress) -> None:
    """What is known of the trials, for whoever looks on."""
    progress.reach(sum(trial.state != "learning" for trial in contest.trials))
    lines = [json.dumps(trial.to_json(), ensure_ascii=False) for trial in contest.trials]
    folder.write_text(TRIALS, "".join(f"{line}\n" for line in lines))
