"""`ConcurrentTrainer`: runs that learn side by side, a step of each in one ragged batch over one frozen model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from foreword.models import LanguageModel
from foreword.text.ragged import passes
from foreword.training.data.examples import Example
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import PASS, evaluate_together
from foreword.training.loop.losses import shared_forward_totals


class ConcurrentTrainer:
    """Lanes in step with each other. They may join and leave between steps, and none sees anything of another.

    Args:
        lm: the frozen model of all.

    Attributes:
        lanes: those that take part, in the order in which they joined.
    """

    def __init__(self, lm: LanguageModel, lanes: Iterable[ConcurrentRun] = ()) -> None:
        self._lm = lm
        self.lanes = list(lanes)

    def join(self, lane: ConcurrentRun) -> None:
        """Take part from the next step on."""
        self.lanes.append(lane)

    def leave(self, lane: ConcurrentRun) -> None:
        """Take no further part."""
        self.lanes.remove(lane)

    def step(self) -> list[ConcurrentRun]:
        """One optimizer step of every lane that has not ended, and the evaluations that are due behind it.

        Returns the lanes that ended with it.
        """
        live = [lane for lane in self.lanes if not lane.ended]
        for part in range(max((lane.run.recipe.accumulate for lane in live), default=0)):
            shares = [(lane, _part(lane, part)) for lane in live]
            for shared in passes([(share, _size(share[1])) for share in shares if share[1]], PASS):
                self._learn(shared)
        for lane in live:
            if lane.failed:
                lane.forget()
            else:
                lane.update()
        due = [lane for lane in live if lane.due and not lane.failed]
        for lane, metrics in zip(due, evaluate_together([lane.scorer for lane in due]), strict=True):
            lane.judge(metrics)
        return [lane for lane in live if lane.ended]

    def run(self) -> Iterator[list[ConcurrentRun]]:
        """Steps until all have ended, each giving what `step` gives."""
        while any(not lane.ended for lane in self.lanes):
            yield self.step()

    def _learn(self, shared: Sequence[tuple[ConcurrentRun, Sequence[Example]]]) -> None:
        """Add to every lane's gradients those of its share of one forward."""
        sums = shared_forward_totals(self._lm, [lane.ask(examples) for lane, examples in shared])
        losses = [lane.share(total) for (lane, _), total in zip(shared, sums, strict=True)]
        good = [loss for loss in losses if loss is not None]
        if good:
            # Every value belongs to one lane, so the gradient of the sum is each one's own.
            sum(good[1:], good[0]).backward()


def _part(lane: ConcurrentRun, part: int) -> list[Example]:
    """One of the parts that a lane's step is cut into, for less memory; all of them have the gradient of the whole."""
    count = lane.run.recipe.accumulate
    return lane.batch[part::count] if part < count else []


def _size(examples: Sequence[Example]) -> int:
    return sum(example.size for example in examples)
