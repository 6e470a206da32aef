"""`MultiTaskTrainer`: learns tasks in shared batches, ``at_once`` of them at a time, and publishes each as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import PublishConflict, UsageError
from foreword.evaluation.report import Report
from foreword.models import LanguageModel
from foreword.progress import Progress, Say
from foreword.training.loop.baseline import constant_metrics
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.gradient_check import check_gradients
from foreword.training.loop.run_dir import DAMAGED
from foreword.training.loop.selection import best_task_of_each, selection_score
from foreword.training.many.config import MultiTaskConfig
from foreword.training.many.shared_init import SharedInit
from foreword.training.many.task_datasets import TaskDatasets
from foreword.training.many.task_progress import TaskProgress
from foreword.training.run import Run

# Seconds between two snapshots of the tasks that are being learned.
SNAPSHOT_INTERVAL = 60.0

Publish = Callable[[Task, bool], str | None]
"""Takes a learned task, and whether it is at least as good as the base model; returns the reference ``name@version``
that it was published under, or ``None`` if it was not."""


@dataclass(eq=False)
class MultiTaskTrainer:
    """Learns tasks with a `ConcurrentTrainer`; the memory holds those of one batch.

    Attributes:
        lm: the base model.
        config: settings of the run.
        datasets: the examples of every task.
        engine: serves the base model for evaluations.
        shared: what all tasks start from.
        transfer: the published task that all start from, if any.
        publish: called with every learned task.
        task_progress: records and snapshots in the run folder.
        say: gets a line for every task that fails.
    """

    lm: LanguageModel
    config: MultiTaskConfig
    datasets: TaskDatasets
    engine: EngineProtocol
    shared: SharedInit
    transfer: Task | None
    publish: Publish
    task_progress: TaskProgress
    say: Say
    _trainer: ConcurrentTrainer = field(init=False)
    _digests: dict[str, str] = field(init=False, default_factory=dict)
    _gradients_checked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._trainer = ConcurrentTrainer(self.lm)

    def train(self, names: Sequence[str]) -> None:
        """Learn all of these tasks that have not ended yet, from the newest snapshot if there is one."""
        self._digests = {name: self.datasets.digest(name) for name in names}
        ended = {
            name
            for name, record in self.task_progress.records().items()
            if record["status"] != "left out" and record.get("inputs") == self._digests.get(name)
        }
        self._restore_snapshot()
        started = {run.name for run in self._trainer.runs}
        waiting = iter([name for name in names if name not in ended and name not in started])
        snapshot_time = time.monotonic()
        with Progress("learning", len(names), "tasks") as progress:
            progress.set_completed(len(ended - started), before=True)
            self._start(waiting)
            while self._trainer.runs:
                progress.advance(self._step(ended))
                if time.monotonic() - snapshot_time >= SNAPSHOT_INTERVAL:
                    self.task_progress.save_snapshot(self._trainer.runs, self._digests)
                    snapshot_time = time.monotonic()
                self._start(waiting)
        self.task_progress.delete_snapshot()

    def _restore_snapshot(self) -> None:
        # Tasks that have ended since the snapshot are learned along once more, so that every batch is what it was.
        for name, digest, state, file in self.task_progress.snapshot():
            if self._digests.get(name) == digest:
                run = self._concurrent_run(name)
                try:
                    run.load_state(state, load_file(file))
                except (*DAMAGED, OSError, SafetensorError) as error:
                    raise self.task_progress.damaged() from error
                self._trainer.add(run)

    def _start(self, waiting: Iterator[str]) -> None:
        """Start waiting tasks until ``at_once`` are learned."""
        while len(self._trainer.runs) < self.config.at_once and (name := next(waiting, None)) is not None:
            try:
                self._trainer.add(self._concurrent_run(name))
            except UsageError as error:
                self._fail(name, "cannot be learned", str(error))

    def _step(self, ended: Collection[str]) -> int:
        """One step of all tasks; the number that ended with it, which nothing holds in memory afterwards.

        Args:
            ended: names of tasks that are only learned along.
        """
        done = self._trainer.step()
        for run in done:
            self._trainer.remove(run)
        self._finish([run for run in done if run.name not in ended])
        return len(done)

    def _concurrent_run(self, name: str) -> ConcurrentRun:
        recipe, data = self.config.task_recipe(name), self.datasets.training_data(name)
        run = Run.from_recipe(self.lm, recipe, self.shared.init_task or self.transfer, data, self.shared.shared_prefix)
        prompt = run.initial_prompt()
        if not self._gradients_checked:
            check_gradients(run, prompt)
            self._gradients_checked = True
        return ConcurrentRun(name, TaskEvaluator(run, self.engine, run.task(name), prompt))

    def _finish(self, runs: Sequence[ConcurrentRun]) -> None:
        """Evaluate, publish and record tasks that have ended."""
        for run in runs:
            if run.error:
                self._fail(run.name, "failed", run.error)
        learned = [run for run in runs if not run.error]
        for run in learned:
            run.load_best()
        best = best_task_of_each(self.engine, [(run.run, _candidates(run)) for run in learned])
        for run, (task, report), base in zip(learned, best, _base_results(self.engine, learned), strict=True):
            base_metrics, base_key = base
            better = _comparison_key(report) >= base_key
            metrics = {"metrics": report.metrics, "metrics_before": base_metrics}
            task = replace(task, provenance={**task.provenance, **self.shared.provenance, **metrics})
            try:
                ref = self.publish(task, better)
            except PublishConflict as error:
                self._fail(run.name, "was learned and not published", str(error))
                continue
            self._record(
                run.name,
                "learned",
                **metrics,
                inputs=self._digests[run.name],
                n=report.n,
                better=better,
                published=ref,
                steps=run.step,
                best_step=run.best[1] if run.best is not None else 0,
            )

    def _fail(self, name: str, outcome: str, error: str) -> None:
        self.say(f"{name} {outcome}: {error}")
        self._record(name, "failed", why=error, inputs=self._digests[name])

    def _record(self, name: str, status: str, **details: Any) -> None:
        self.task_progress.write_record({"task": name, "status": status, **details})


def _candidates(trained: ConcurrentRun) -> list[Task]:
    """The learned task with each of its templates."""
    task = trained.prompt.to_task(trained.run.lm, trained.evaluator.task)
    return trained.run.data.tasks(task)


def _base_results(
    engine: EngineProtocol, runs: Sequence[ConcurrentRun]
) -> list[tuple[dict[str, float], tuple[float, float]]]:
    """Metrics of the base model with the best template of each task, and their `_comparison_key`."""
    without_head = [each for each in runs if not each.run.data.head_labels]
    plain = [(each.run, each.run.data.plain_tasks(each.evaluator.task)) for each in without_head]
    best = dict(zip((each.name for each in without_head), best_task_of_each(engine, plain), strict=True))
    results = []
    for each in runs:
        if each.name in best:
            _, report = best[each.name]
            results.append((report.metrics, _comparison_key(report)))
        else:  # an untrained head predicts nothing
            metrics, _ = constant_metrics(each.run.data)
            results.append((metrics, (selection_score(metrics), float("-inf"))))
    return results


def _comparison_key(report: Report) -> tuple[float, float]:
    """The sort key of a task: its first metric, then its loss."""
    losses = [prediction.nll for prediction in report.predictions if prediction.nll is not None]
    return selection_score(report.metrics), -sum(losses)
