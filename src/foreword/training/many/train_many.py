"""`train_many`: many tasks, each with its own rows, learned in the same batches over one frozen model.

Only so many are in memory at a time: whoever ends gives its place to the next.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.core import Task
from foreword.engine.encoder_decoder import evaluation_engine
from foreword.engine.protocol import EngineProtocol
from foreword.errors import DataError, PublishConflict, UsageError
from foreword.evaluation.report import Report
from foreword.models import LanguageModel
from foreword.progress import Progress, Say
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.baseline import majority_share
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.distributed import barrier, is_own_work, rank
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES, TaskEvaluator
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.selection import best_task_of_each, selection_score
from foreword.training.many.config import MultiTaskConfig
from foreword.training.many.shared_init import SharedInit, shared_init
from foreword.training.many.task_progress import TaskProgress
from foreword.training.many.task_source import TaskSource
from foreword.training.run import Run

# Seconds between two snapshots of what is being learned.
SNAPSHOT = 60.0

Keep = Callable[[Task, bool], str | None]
"""Gets every task that was learned, and whether it is at least as good as the base model; gives the name and version
that it was published under, or ``None`` if it was not."""


def train_many(
    lm: LanguageModel,
    plan: MultiTaskConfig,
    users: TaskSource,
    held: TaskSource | None,
    keep: Keep,
    transfer: Task | None,
    say: Say,
) -> list[dict[str, Any]]:
    """Learn this process's share of the tasks.

    Args:
        lm: the base model.
        plan: what they have in common, and their own settings.
        users: the rows of every task.
        held: those that it is evaluated on; a tenth of its rows without.
        keep: publishes.
        transfer: the task that all start from.
        say: gets a line for every stage.

    Returns:
        a record of every task, of all processes.

    Raises:
        UsageError: there is nothing to learn, or a setting is wrong.
        TrainingError: the run folder holds another run, or cannot be written.
    """
    barrier()
    folder = RunDir.open(plan.out, plan.settings(lm, transfer), resume=plan.recipe.resume)
    many = _MultiTaskRun(lm, plan, users, held, keep, transfer, say, TaskProgress(folder.path, rank()))
    many.learn()
    barrier()
    wanted = set(users.names)
    return [record for name, record in sorted(many.ledger.ended().items()) if name in wanted]


@dataclass(frozen=True)
class _MultiTaskRun:
    lm: LanguageModel
    plan: MultiTaskConfig
    users: TaskSource
    held: TaskSource | None
    keep: Keep
    transfer: Task | None
    say: Say
    ledger: TaskProgress

    def learn(self) -> None:
        names = list(self._survey())
        with (
            evaluation_engine(self.lm, cache_bytes=EVAL_CACHE_BYTES, reuse=False) as engine,
            gradient_checkpointing(self.lm, self.plan.recipe.checkpointing),
        ):
            shared = shared_init(self.lm, self.plan, engine, self.material, names, self.ledger.folder, self.say)
            self._stream([name for name in names if is_own_work(name)], engine, shared)

    def _survey(self) -> Iterator[str]:
        """Look at everybody's rows before anything is learned: the names of those who can be learned from."""
        good, reasons, known = 0, [], self.ledger.ended()
        for name in self.users.names:
            try:
                material = self.material(name)
                if len(material.labels) == 1:
                    raise DataError(
                        f"it has only the label '{material.labels[0]}', so there is nothing to tell apart; give the "
                        "others with --verbalizer"
                    )
            except UsageError as error:
                reasons.append(f"{name}: {error}")
                if is_own_work(name) and known.get(name, {}).get("why") != str(error):
                    self._note(name, "left out", why=str(error))
                continue
            good += 1
            yield name
        for reason in reasons[:5]:
            self.say(f"left out: {reason}")
        if len(reasons) > 5:
            self.say(f"left out: {len(reasons) - 5} more, see the summary")
        if not good:
            raise UsageError(f"none of the {len(self.users.names)} tasks can be learned; the first: {reasons[0]}")

    def material(self, name: str) -> TrainingData:
        """The rows of a task, checked. Raises DataError for too few."""
        rows = self.users.rows(name)
        if len(rows) < self.plan.min_rows:
            raise DataError(f"it has {len(rows)} rows, fewer than {self.plan.min_rows} (--min-rows)")
        held = self.held.rows(name) if self.held is not None else []
        made = TrainingData.from_rows(self.plan.recipe_of(name), rows, held, vocabulary=self.lm.vocabulary)
        return replace(made, digest=self.users.digest(name))

    def _inputs(self, name: str) -> str:
        """Digest of all that is a task's own: it is learned again when this changes."""
        held = self.held.digest(name) if self.held is not None else ""
        own = json.dumps(dict(self.plan.tasks.get(name, {})), sort_keys=True)
        return hashlib.sha256("\n".join((self.users.digest(name), held, own)).encode()).hexdigest()

    def _stream(self, names: Sequence[str], engine: EngineProtocol, shared: SharedInit) -> None:
        inputs = {name: self._inputs(name) for name in names}
        ended = {
            name
            for name, record in self.ledger.ended().items()
            if record["status"] != "left out" and record["inputs"] == inputs.get(name)
        }
        group = ConcurrentTrainer(self.lm)
        # Some may have ended since the snapshot: they come along once more, so that every batch is what it was.
        for name, before, state, file in self.ledger.kept():
            if inputs.get(name) == before:
                lane = self._lane(name, engine, shared)
                self.ledger.restore(lane, state, file)
                group.add(lane)
        begun = {lane.name for lane in group.runs}
        queue = iter([name for name in names if name not in ended and name not in begun])
        snapshot = time.monotonic()
        with Progress("learning", len(names), "tasks") as progress:
            progress.reach(len(ended - begun), before=True)
            while self._fill(group, queue, engine, shared, inputs) or group.runs:
                progress.advance(self._advance(group, engine, shared, inputs, ended))
                if time.monotonic() - snapshot >= SNAPSHOT:
                    self.ledger.keep(group.runs, inputs)
                    snapshot = time.monotonic()
        self.ledger.drop()

    def _fill(
        self,
        group: ConcurrentTrainer,
        queue: Iterator[str],
        engine: EngineProtocol,
        shared: SharedInit,
        inputs: Mapping[str, str],
    ) -> bool:
        """Give free places to those who wait; whether anybody came."""
        came = False
        while len(group.runs) < self.plan.at_once and (name := next(queue, None)) is not None:
            try:
                group.add(self._lane(name, engine, shared))
                came = True
            except UsageError as error:
                self.say(f"{name} cannot be learned: {error}")
                self._note(name, "failed", why=str(error), inputs=inputs[name])
        return came

    def _advance(
        self,
        group: ConcurrentTrainer,
        engine: EngineProtocol,
        shared: SharedInit,
        inputs: Mapping[str, str],
        ended: Collection[str],
    ) -> int:
        """A step of all, and the end of those for whom it was the last: how many. Nothing holds them afterwards."""
        done = group.step()
        for lane in done:
            group.remove(lane)
        self._finish([lane for lane in done if lane.name not in ended], engine, shared, inputs)
        return len(done)

    def _lane(self, name: str, engine: EngineProtocol, shared: SharedInit) -> ConcurrentRun:
        recipe = self.plan.recipe_of(name)
        transfer = shared.start or self.transfer
        run = Run.from_recipe(self.lm, recipe, transfer, self.material(name), shared.behind)
        return ConcurrentRun(name, TaskEvaluator(run, engine, run.task(name), run.initial_prompt()))

    def _finish(
        self, lanes: Sequence[ConcurrentRun], engine: EngineProtocol, shared: SharedInit, inputs: Mapping[str, str]
    ) -> None:
        """Measure, publish and write down what has been learned."""
        for lane in lanes:
            if lane.error:
                self.say(f"{lane.name} failed: {lane.error}")
                self._note(lane.name, "failed", why=lane.error, inputs=inputs[lane.name])
        good = [lane for lane in lanes if not lane.error]
        for lane in good:
            lane.load_best()
        found = best_task_of_each(engine, [(lane.run, _tasks(lane)) for lane in good])
        for lane, (task, report), base in zip(good, found, _bases(engine, good), strict=True):
            better = _key(report) >= base[1]
            figures = {"metrics": report.metrics, "metrics_before": base[0]}
            parents = shared.provenance
            task = replace(task, provenance={**task.provenance, **parents, **figures})
            try:
                ref = self.keep(task, better)
            except PublishConflict as error:
                self.say(f"{lane.name} was learned and not published: {error}")
                self._note(lane.name, "failed", why=str(error), inputs=inputs[lane.name])
                continue
            self._note(
                lane.name,
                "learned",
                **figures,
                inputs=inputs[lane.name],
                n=report.n,
                better=better,
                published=ref,
                steps=lane.step,
                best_step=lane.best[1] if lane.best is not None else 0,
            )

    def _note(self, name: str, status: str, **what: Any) -> None:
        self.ledger.end({"task": name, "status": status, **what})


def _tasks(lane: ConcurrentRun) -> list[Task]:
    """What was learned, with every template."""
    learned = lane.prompt.to_task(lane.run.lm, lane.evaluator.task)
    return [replace(learned, template=template.source) for template in lane.run.data.templates]


def _bases(
    engine: EngineProtocol, lanes: Sequence[ConcurrentRun]
) -> list[tuple[dict[str, float], tuple[float, float]]]:
    """Figures of the base model with the best template of each, and its `_key`."""
    words = [lane for lane in lanes if not lane.run.data.head_labels]
    plain = [
        (lane.run, [replace(lane.evaluator.task, template=each.plain().source) for each in lane.run.data.templates])
        for lane in words
    ]
    found = dict(zip((lane.name for lane in words), best_task_of_each(engine, plain), strict=True))
    bases = []
    for lane in lanes:
        if lane.name in found:
            _, report = found[lane.name]
            bases.append((report.metrics, _key(report)))
        else:  # a head answers nothing before it has learned
            share = majority_share(lane.run.data)
            bases.append(({"accuracy": share}, (share, float("-inf"))))
    return bases


def _key(report: Report) -> tuple[float, float]:
    """What two tasks are compared by: the first figure, and the loss where that is equal."""
    losses = [prediction.nll for prediction in report.predictions if prediction.nll is not None]
    return selection_score(report.metrics), -sum(losses)
