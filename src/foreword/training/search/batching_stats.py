"""`BatchingStats`: measured time saved by trials that share a batch, and examples saved by successive halving."""

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

# Pairs of a step side by side and a step one after another, for each number of lanes that there is.
PAIRS = 3


@dataclass
class BatchingStats:
    """Now and then a step of all lanes is taken one lane after another, and timed beside one that they share.

    Both are real steps of the search; nothing is run twice.

    Attributes:
        pairs: ``(lanes, seconds side by side, seconds one after another)``.
    """

    pairs: list[tuple[int, float, float]] = field(default_factory=list)

    def step(self, lm: LanguageModel, together: ConcurrentTrainer) -> None:
        """One step of all lanes, or a pair of them that is timed."""
        if not self._wanted(together.lanes):
            together.step()
            return
        alone = [ConcurrentTrainer(lm, [lane]) for lane in together.lanes]
        ways = ([together], alone)
        seconds = [0.0, 0.0]
        # They take turns at going first.
        for way in (0, 1) if len(self.pairs) % 2 else (1, 0):
            began = time.perf_counter()
            for group in ways[way]:
                group.step()
            seconds[way] = time.perf_counter() - began
        self.pairs.append((len(together.lanes), seconds[0], seconds[1]))

    def _wanted(self, lanes: Sequence[ConcurrentRun]) -> bool:
        known = [count for count, *_ in self.pairs].count(len(lanes))
        # The first step of a lane warms caches up; an evaluation is no step.
        calm = all(lane.step > 0 and _until_evaluation(lane) > 2 for lane in lanes)
        return len(lanes) > 1 and known < PAIRS and calm

    def batching(self) -> list[dict[str, Any]]:
        """By how many lanes there were: seconds of a step of all, side by side and one after another."""
        found = []
        for count in sorted({lanes for lanes, *_ in self.pairs}, reverse=True):
            joint = [together for lanes, together, _ in self.pairs if lanes == count]
            single = [apart for lanes, _, apart in self.pairs if lanes == count]
            found.append(
                {
                    "trials": count,
                    "pairs": len(joint),
                    "seconds_together": sum(joint) / len(joint),
                    "seconds_one_by_one": sum(single) / len(single),
                    "times_faster": sum(single) / sum(joint),
                }
            )
        return found


def halving(trials: Sequence[Trial]) -> dict[str, Any]:
    """Examples that were learned from, and those that dropped trials never came to."""
    done = sum(trial.step * trial.batch_size for trial in trials)
    spared = sum((trial.steps - trial.step) * trial.batch_size for trial in trials if trial.state == "dropped")
    return {
        "dropped": sum(trial.state == "dropped" for trial in trials),
        "examples_run": done,
        "examples_not_run": spared,
        "share_not_run": spared / (done + spared) if done + spared else 0.0,
    }


def _until_evaluation(lane: ConcurrentRun) -> int:
    """Steps up to the next evaluation or to the end, that one included."""
    every = -(-lane.steps // EVALUATIONS)
    return min(every - lane.step % every, lane.steps - lane.step)
