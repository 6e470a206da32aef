"""How good a run is as it stands: through the engine that will serve it, on the held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from foreword.core import Front, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.evaluation.evaluate import evaluate
from foreword.training.data import Example
from foreword.training.learned import Learned
from foreword.training.run import Run


@dataclass(frozen=True)
class Scorer:
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
    learned: Learned

    def __call__(self) -> dict[str, float]:
        """Metrics of the task as it stands. Raises TrainingError if it no longer gives numbers."""
        metrics = self._labels() if self.run.material.labels else self._answers()
        if not math.isfinite(metrics["loss"]):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        return metrics

    def _labels(self) -> dict[str, float]:
        """Those of the template that does best by its first figure (accuracy, F1 of spans); the loss breaks ties."""
        tasks = [replace(self.task, template=template.source) for template in self.run.material.templates]
        found = [self._of_template(self.learned.become(self.run.lm, task)) for task in tasks]
        return max(found, key=lambda metrics: metrics["score"])

    def _of_template(self, task: Task) -> dict[str, float]:
        report = evaluate(self.engine, task, self.run.held, label_field=self.run.material.label_field)
        loss, first = report.loss, next(iter(report.metrics.values()))
        assert loss is not None  # only of generated texts there may be none
        return {**report.metrics, "loss": loss, "score": first + 1e-4 / (1 + loss)}

    @torch.inference_mode()
    def _answers(self) -> dict[str, float]:
        """Mean loss of the answers' tokens: as good a guide as generating them all, and much quicker."""
        front = self._front(self.learned.become(self.run.lm, self.task))
        loss, total, weight = self.run.loss(self.learned), 0.0, 0.0
        for start in range(0, len(self._held), self.run.batch_size):
            piece = self._held[start : start + self.run.batch_size]
            total += float(loss.total(self.run.lm, front, piece))
            weight += loss.weight(piece)
        return {"loss": total / weight, "score": -total / weight}

    def _front(self, task: Task) -> Front:
        inner = self.run.material.template.inner_soft(self.run.lm.causal)
        soft = task.soft[len(task.soft) - inner :] if inner and task.soft is not None else None
        return Front(task.prefix, inner=soft, adapter=task.adapter)

    @cached_property
    def _held(self) -> Sequence[Example]:
        return sorted(self.run.reader.read(self.run.held), key=lambda example: example.size)
