"""`ConcurrentTrainer`: runs that are trained side by side, a step of each in one ragged batch over one frozen model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from foreword.models import LanguageModel
from foreword.text.ragged import batch_by_tokens
from foreword.training.data.examples import Example
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import MAX_FORWARD_TOKENS, evaluate_together
from foreword.training.modules.losses import shared_forward_totals


class ConcurrentTrainer:
    """Trains runs step by step, each as it would be alone. Runs may be added and removed between steps.

    Args:
        lm: the frozen model of all.

    Attributes:
        runs: in the order in which they were added.
    """

    def __init__(self, lm: LanguageModel, runs: Iterable[ConcurrentRun] = ()) -> None:
        self._lm = lm
        self.runs = list(runs)

    def add(self, run: ConcurrentRun) -> None:
        """Train a run from the next step on."""
        self.runs.append(run)

    def remove(self, run: ConcurrentRun) -> None:
        """Train a run no further."""
        self.runs.remove(run)

    def step(self) -> list[ConcurrentRun]:
        """One optimizer step of every unfinished run, and the evaluations that are due after it.

        Returns the runs that it was the last step of.
        """
        live = [run for run in self.runs if not run.finished]
        for part in range(max((run.micro_batches for run in live), default=0)):
            parts = [(run, run.micro_batch(part)) for run in live]
            for shared in batch_by_tokens(
                [(each, _num_tokens(each[1])) for each in parts if each[1]], MAX_FORWARD_TOKENS
            ):
                self._backward(shared)
        for run in live:
            if run.error:
                run.zero_grad()
            else:
                run.optimizer_step()
        due = [run for run in live if run.should_evaluate and not run.error]
        for run, metrics in zip(due, evaluate_together([run.evaluator for run in due]), strict=True):
            run.record_evaluation(metrics)
        return [run for run in live if run.finished]

    def train(self) -> Iterator[list[ConcurrentRun]]:
        """Step until all runs have finished; yields what `step` returns."""
        while any(not run.finished for run in self.runs):
            yield self.step()

    def _backward(self, parts: Sequence[tuple[ConcurrentRun, Sequence[Example]]]) -> None:
        """Add to every run's gradients those of its part of one forward."""
        totals = shared_forward_totals(self._lm, [run.forward_inputs(examples) for run, examples in parts])
        losses = [run.part_of_loss(total) for (run, _), total in zip(parts, totals, strict=True)]
        finite = [loss for loss in losses if loss is not None]
        if finite:
            # Every value belongs to one run, so the gradient of the sum is that of its own loss.
            sum(finite[1:], finite[0]).backward()


def _num_tokens(examples: Sequence[Example]) -> int:
    return sum(example.num_tokens for example in examples)
