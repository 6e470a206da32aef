"""`search`: hyper-parameter search: many trials in one batch, and the task of the best."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.core import Task
from foreword.core.overview import Overview, WithOverview, metrics_line
from foreword.engine.engine import Engine
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.curves import write_curves
from foreword.home import default_run_dir
from foreword.models import LanguageModel
from foreword.progress import Progress, Say
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.baseline import baseline_metrics
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES
from foreword.training.loop.gradient_check import check_gradients
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.selection import best_task, format_metrics
from foreword.training.methods.base import MethodResult
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.search.batching_stats import halving_stats
from foreword.training.search.config import SearchConfig, errors_name_search_key
from foreword.training.search.plots import write_plots
from foreword.training.search.space import TrialParams
from foreword.training.search.trial import Trial, rank_trials
from foreword.training.search.trial_scheduler import TrialFactory, TrialScheduler

TRIALS_FILE = "trials.jsonl"
PLOTS_FILE = "trials.png"
# Runs that are made before anything starts, so that errors in the data or the parameters are raised then.
MAX_CHECKED_RUNS = 64
# Keys that decide whether a run can be made.
_STRUCTURAL = ("method", "length", "init", "init_text", "rank", "encoder", "projection", "freeze_first")


@dataclass(frozen=True, repr=False)
class SearchResult(WithOverview):
    """The best trial of a search, its task, and all other trials.

    Attributes:
        task: the winner's, lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: metrics of the same template without a learned prompt.
        trained_parameters: number of trained parameters of the winner.
        recipe: the winner's: `foreword.training.train` gives the same task with it.
        winner: the best trial.
        trials: all, the best first.
        savings: what ``halving`` and ``batching`` saved, see `halving_stats` and `BatchingStats`.
        folder: the run folder, with the trials as JSONL and as a picture.
        seconds: of this process, from reading the data to the winner's metrics.
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

    def overview(self) -> Overview:
        """The winner, its metrics before and after, and where the run is."""
        winner = ", ".join(f"{name} {value}" for name, value in self.winner.params.items())
        return Overview(
            f"SearchResult of {len(self.trials)} trials",
            {
                "winner": winner,
                "metrics": f"{metrics_line(self.metrics, self.before)} on {self.n} rows",
                "task": self.task.ref,
                "run": self.folder,
            },
        )


def search(
    lm: LanguageModel,
    recipe: Recipe,
    config: SearchConfig,
    *,
    name: str = "run",
    transfers: Mapping[str, Task] | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> SearchResult:
    """Learn with many settings side by side, and keep the task that scores best on the held-out rows.

    The trials learn in one ragged batch, each with an optimizer, a schedule and evaluations of its own, so that the
    winner is what `foreword.training.train` gives with its recipe.

    Args:
        lm: the base model; its weights are the same afterwards.
        recipe: settings that all trials have in common.
        config: what is searched, and how.
        name: of the task.
        transfers: the tasks that ``init: task:NAME`` names, by name.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in recipe, config or data is wrong.
        TrainingError: the run folder holds another search, or no trial could be learned.
    """
    began = time.perf_counter()
    require_single_process("a search")
    config.check(recipe)
    factory = TrialFactory(lm, recipe, config, TrainingData.read(recipe, vocabulary=lm.has_lm_head), transfers or {})
    first = _check_runs(factory)
    for warning in first.data.warnings:
        say(f"warning: {warning}")
    with Engine(lm, cache_bytes=EVAL_CACHE_BYTES, reuse=False) as engine:
        folder = RunDir.open(
            Path(recipe.out or default_run_dir("search")), _settings(factory, first), resume=recipe.resume
        )
        before = baseline_metrics(first, engine, say)
        scheduler = TrialScheduler(factory, first, engine, folder, say)
        count = min(config.trials, config.space.size or config.trials)
        with Progress("searching", count, "trials") as progress, gradient_checkpointing(lm, recipe.checkpointing):
            best_run = scheduler.run(lambda: _write_trials(scheduler.trials, folder, progress))
        best = _method_result(best_run, engine, name)
    winner, metrics = scheduler.trials[int(best_run.name)], best.report.metrics
    provenance = {"trials": len(scheduler.trials), "winner": winner.number, "varied": winner.params}
    result = SearchResult(
        task=replace(
            best.task,
            provenance={
                **best.task.provenance,
                "metrics": metrics,
                "metrics_before": before,
                "search": provenance,
            },
        ),
        n=best.report.n,
        metrics=metrics,
        before=before,
        trained_parameters=best.trained_parameters,
        recipe=best_run.run.recipe,
        winner=winner,
        trials=rank_trials(scheduler.trials),
        savings={"halving": halving_stats(scheduler.trials), "batching": scheduler.batching_stats.to_json()},
        folder=folder.path,
        seconds=time.perf_counter() - began,
    )
    say(f"trial {winner.number} is best: {format_metrics(metrics)} on {result.n} rows")
    _write_result(result, folder, best_run.log_history)
    return result


def _settings(factory: TrialFactory, first: Run) -> dict[str, Any]:
    """Settings that must be the same for a search to be resumed; searched keys have no value of their own."""
    searched = dict.fromkeys(factory.config.space.domains)
    transfers = {name: task.prefix.digest for name, task in factory.transfers.items()}
    return {**first.settings(), **factory.config.to_json(), **searched, "transfer": transfers}


def _check_runs(factory: TrialFactory) -> Run:
    """Encode the rows and make the initial values for every kind of trial, so that errors come first; the first run."""
    checked: list[TrialParams] = []
    first: Run | None = None
    for params in factory.config.params_to_check():
        structure = {key: value for key, value in params.items() if key in _STRUCTURAL}
        if structure not in checked and len(checked) < MAX_CHECKED_RUNS:
            checked.append(structure)
            run = factory.create_run(params, first)
            with errors_name_search_key(params):
                prompt = run.initial_prompt()
            if first is None:
                check_gradients(run, prompt)
            first = first or run
    assert first is not None  # a space has at least one set of parameters
    return first


def _method_result(best: ConcurrentRun, engine: EngineProtocol, name: str) -> MethodResult:
    """The task of the best trial, with the template that scores best."""
    best.load_best()
    run = best.run
    learned = best.prompt.to_task(run.lm, run.task(name))
    return MethodResult(
        *best_task(run, engine, run.data.tasks(learned)), trained_parameters=best.prompt.num_trainable_parameters
    )


def _write_trials(trials: Sequence[Trial], folder: RunDir, progress: Progress) -> None:
    """Write ``trials.jsonl`` anew, and move the progress bar to the number of trials that have ended."""
    progress.set_completed(sum(trial.state != "learning" for trial in trials))
    lines = [json.dumps(trial.to_json(), ensure_ascii=False) for trial in trials]
    folder.write_text(TRIALS_FILE, "".join(f"{line}\n" for line in lines))


def _write_result(result: SearchResult, folder: RunDir, history: Sequence[Mapping[str, float]]) -> None:
    """Write the winner's history and curves, plots of all trials, and the summary."""
    folder.write_history(history)
    write_curves(history, folder.path / "curves.png")
    write_plots(sorted(result.trials, key=lambda trial: trial.number), result.winner, folder.path / PLOTS_FILE)
    metrics = {"metrics": result.metrics, "metrics_before": result.before}
    folder.write_summary({"n": result.n, **metrics, "winner": result.winner.to_json(), "savings": result.savings})
