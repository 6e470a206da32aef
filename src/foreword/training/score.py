"""How good an encoder is as it stands: through the engine that will serve it, on the held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from foreword.core import Front, KVPrefix, Task
from foreword.engine.engine import Engine
from foreword.errors import TrainingError
from foreword.evaluation.evaluate import Prediction, evaluate
from foreword.prompts.base import PromptEncoder
from foreword.prompts.lower import lower
from foreword.training.data import Example
from foreword.training.run import Run


@dataclass(frozen=True)
class Scorer:
    """Called at every evaluation; ``score`` among its metrics chooses the best checkpoint.

    Attributes:
        run: data and loss.
        engine: serves the run's model.
        task: the run's task with an empty prefix.
        encoder: what is being learned.
    """

    run: Run
    engine: Engine
    task: Task
    encoder: PromptEncoder

    def __call__(self) -> dict[str, float]:
        """Metrics of the lowered encoder. Raises TrainingError if it no longer gives numbers."""
        prefix = lower(self.run.lm, self.encoder)
        metrics = self._labels(prefix) if self.run.reader.trie is not None else self._answers(prefix)
        if not math.isfinite(metrics["loss"]):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        return metrics

    def _labels(self, prefix: KVPrefix) -> dict[str, float]:
        """Accuracy, with ties broken by the loss."""
        task = replace(self.task, prefix=prefix)
        report = evaluate(self.engine, task, self.run.held, label_field=self.run.material.label_field)
        loss = sum(map(_surprise, report.predictions)) / report.n
        return {**report.metrics, "loss": loss, "score": report.metrics["accuracy"] + 1e-4 / (1 + loss)}

    @torch.inference_mode()
    def _answers(self, prefix: KVPrefix) -> dict[str, float]:
        """Mean loss of the answers' tokens: as good a guide as generating them all, and much quicker."""
        total, tokens = 0.0, 0
        for start in range(0, len(self._held), self.run.batch_size):
            piece = self._held[start : start + self.run.batch_size]
            count = sum(len(example.target) for example in piece)
            total += count * float(self.run.loss(self.run.lm, Front(prefix), piece))
            tokens += count
        return {"loss": total / tokens, "score": -total / tokens}

    @cached_property
    def _held(self) -> list[Example]:
        return sorted(self.run.reader.read(self.run.held), key=lambda example: example.size)


def _surprise(prediction: Prediction) -> float:
    chance = (prediction.probs or {})[prediction.expected]
    # Not max(): it would turn a probability that is no number into a small one.
    return -math.log(chance) if chance > 1e-12 or math.isnan(chance) else -math.log(1e-12)
