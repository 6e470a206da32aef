"""`BatchingStats`: seconds saved by a shared batch; `halving_stats`: examples saved by successive halving."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.models import LanguageModel
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.trainer import EVALUATIONS
from foreword.training.search.trial import Trial

# Timed pairs of steps, one batched and one run by run, for each number of runs.
TIMED_PAIRS = 3


@dataclass
class BatchingStats:
    """Seconds of some steps that all runs share a batch in, and of as many that are taken run by run.

    Both are real steps of the search; nothing is run twice.

    Attributes:
        timings: ``(runs, seconds of the shared step, seconds of the step run by run)``.
    """

    timings: list[tuple[int, float, float]] = field(default_factory=list)

    def step(self, lm: LanguageModel, trainer: ConcurrentTrainer) -> None:
        """One step of all runs, or a timed pair of them."""
        if not self._should_time(trainer.runs):
            trainer.step()
            return
        single = [ConcurrentTrainer(lm, [run]) for run in trainer.runs]
        trainers = ([trainer], single)
        seconds = [0.0, 0.0]
        # They take turns at going first.
        for which in (0, 1) if len(self.timings) % 2 else (1, 0):
            began = time.perf_counter()
            for each in trainers[which]:
                each.step()
            seconds[which] = time.perf_counter() - began
        self.timings.append((len(trainer.runs), seconds[0], seconds[1]))

    def _should_time(self, runs: Sequence[ConcurrentRun]) -> bool:
        timed = [count for count, *_ in self.timings].count(len(runs))
        # Neither the first step of a run, which warms caches up, nor one that is evaluated.
        typical = all(run.step > 0 and _steps_until_evaluation(run) > 2 for run in runs)
        return len(runs) > 1 and timed < TIMED_PAIRS and typical

    def to_json(self) -> list[dict[str, Any]]:
        """For each number of runs: mean seconds of a step, shared and run by run."""
        records = []
        for count in sorted({runs for runs, *_ in self.timings}, reverse=True):
            shared, single = zip(*(seconds for runs, *seconds in self.timings if runs == count), strict=True)
            records.append(
                {
                    "trials": count,
                    "pairs": len(shared),
                    "seconds_together": sum(shared) / len(shared),
                    "seconds_one_by_one": sum(single) / len(single),
                    "times_faster": sum(single) / sum(shared),
                }
            )
        return records


def halving_stats(trials: Sequence[Trial]) -> dict[str, Any]:
    """Examples that trials learned from, and those that dropped trials did not reach."""
    done = sum(trial.step * trial.batch_size for trial in trials)
    saved = sum((trial.steps - trial.step) * trial.batch_size for trial in trials if trial.state == "dropped")
    return {
        "dropped": sum(trial.state == "dropped" for trial in trials),
        "examples_run": done,
        "examples_not_run": saved,
        "share_not_run": saved / (done + saved) if done + saved else 0.0,
    }


def _steps_until_evaluation(run: ConcurrentRun) -> int:
    """Steps up to the next evaluation or to the end, that one included."""
    every = -(-run.steps // EVALUATIONS)
    return min(every - run.step % every, run.steps - run.step)
