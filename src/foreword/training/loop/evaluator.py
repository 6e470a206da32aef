"""How good a run is as it stands: through the engine that will serve it, on the held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from foreword.core import Front, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.evaluation.evaluate import EvaluationJob, evaluate_all
from foreword.evaluation.report import Report
from foreword.models.packed_linear import release
from foreword.text.ragged import passes
from foreword.training.data.examples import Example
from foreword.training.loop.losses import shared_forward_totals
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Tokens of runs that share a forward at most, unless a single one has more. More are no faster and hold more memory.
PASS = 1024


@dataclass(frozen=True)
class TaskEvaluator:
    """Called at every evaluation; ``score`` among its metrics chooses the best checkpoint.

    Attributes:
        run: data and loss.
        engine: serves the run's model.
        task: the run's task before anything is learned.
        learned: what is being learned.
    """

    run: Run
    engine: EngineProtocol
    task: Task
    learned: TrainablePrompt

    def __call__(self) -> dict[str, float]:
        """Metrics of the task as it stands. Raises TrainingError if it no longer gives numbers."""
        (metrics,) = evaluate_together([self])
        if not math.isfinite(metrics["loss"]):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        return metrics

    def trials(self) -> list[EvaluationJob]:
        """What the engine is asked, once for every template."""
        material = self.run.material
        tasks = [replace(self.task, template=template.source) for template in material.templates]
        learned = [self.learned.become(self.run.lm, task) for task in tasks]
        return [EvaluationJob(task, self.run.held, material.label_field) for task in learned]

    def pieces(self) -> Iterator[tuple[Front, Sequence[Example]]]:
        """The held-out rows, some at a time, behind what is learned as it stands."""
        front = self._front(self.learned.become(self.run.lm, self.task))
        for start in range(0, len(self._held), self.run.batch_size):
            yield front, self._held[start : start + self.run.batch_size]

    def _front(self, task: Task) -> Front:
        inner = self.run.material.template.inner_soft(self.run.lm.causal)
        soft = task.soft[len(task.soft) - inner :] if inner and task.soft is not None else None
        return Front(task.prefix, inner=soft, adapter=task.adapter)

    @cached_property
    def _held(self) -> Sequence[Example]:
        return sorted(self.run.reader.read(self.run.held), key=lambda example: example.size)


def evaluate_together(scorers: Sequence[TaskEvaluator]) -> list[dict[str, float]]:
    """Metrics of each, measured together: what they ask is asked in as few forwards as there can be.

    ``score`` is the figure that values are chosen by; ``loss`` may be no number, if those are not.
    """
    labels = [scorer for scorer in scorers if scorer.run.material.labels]
    answers = [scorer for scorer in scorers if not scorer.run.material.labels]
    found = dict(zip(map(id, labels), _of_labels(labels), strict=True))
    found |= zip(map(id, answers), _of_answers(answers), strict=True)
    if scorers:
        release(scorers[0].run.lm.model)  # learning goes on
    return [found[id(scorer)] for scorer in scorers]


def _of_labels(scorers: Sequence[TaskEvaluator]) -> list[dict[str, float]]:
    """Those of the template that does best by its first figure (accuracy, F1 of spans); the loss breaks ties."""
    if not scorers:
        return []
    asked = [scorer.trials() for scorer in scorers]
    reports = iter(evaluate_all(scorers[0].engine, [trial for trials in asked for trial in trials]))
    return [max((_metrics(next(reports)) for _ in trials), key=lambda metrics: metrics["score"]) for trials in asked]


def _metrics(report: Report) -> dict[str, float]:
    loss, first = report.loss, next(iter(report.metrics.values()))
    assert loss is not None  # only of generated texts there may be none
    return {**report.metrics, "loss": loss, "score": first + 1e-4 / (1 + loss)}


@torch.inference_mode()
def _of_answers(scorers: Sequence[TaskEvaluator]) -> list[dict[str, float]]:
    """Mean loss of the answers' tokens: as good a guide as generating them all, and much quicker."""
    losses = [scorer.run.shared_loss(scorer.learned) for scorer in scorers]
    pieces = [(place, *piece) for place, scorer in enumerate(scorers) for piece in scorer.pieces()]
    sums, weights = [0.0] * len(scorers), [0.0] * len(scorers)
    for shared in passes([(piece, sum(example.size for example in piece[2])) for piece in pieces], PASS):
        lm = scorers[0].run.lm
        found = shared_forward_totals(lm, [losses[place].ask(lm, front, examples) for place, front, examples in shared])
        for (place, _, examples), total in zip(shared, found, strict=True):
            sums[place] += float(total)
            weights[place] += losses[place].weight(examples)
    means = [total / weight for total, weight in zip(sums, weights, strict=True)]
    return [{"loss": mean, "score": -mean} for mean in means]
