"""Losses of linear heads that give something else than one label: several labels a row, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.text.label_scorers import HeadScorer
from foreword.training.data.examples import Example
from foreword.training.data.target_scale import TargetScale
from foreword.training.modules.losses import LossInputs, SharedForwardLoss


@dataclass(frozen=True)
class LabelSetLoss(SharedForwardLoss):
    """Binary cross-entropy of every label, the mean over rows and labels, as PyTorch's ``BCEWithLogitsLoss``.

    Attributes:
        scorer: the head.
        pos_weight: ``[labels]`` float32, how much a label that applies weighs; ``None`` for 1.
    """

    scorer: HeadScorer
    pos_weight: Tensor | None = None

    def forward_inputs(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs:
        batch, places = self.scorer.make_batch(front, [example.encoded for example in examples], lm.device)
        rows = [(row, label) for row, example in enumerate(examples) for label in example.labels]

        def criterion(outputs: Tensor) -> Tensor:
            scores = self.scorer.scores(outputs)
            wanted = torch.zeros_like(scores)
            if rows:
                wanted[tuple(torch.tensor(rows, device=scores.device).T)] = 1.0
            weight = self.pos_weight.to(scores) if self.pos_weight is not None else None
            return F.binary_cross_entropy_with_logits(scores, wanted, pos_weight=weight, reduction="sum")

        return LossInputs(batch, places, True, criterion)

    def normalizer(self, examples: Sequence[Example]) -> float:
        return float(len(examples) * self.scorer.num_labels)


@dataclass(frozen=True)
class RegressionLoss(SharedForwardLoss):
    """Mean squared error of a number, in units of its standard deviation.

    Attributes:
        scorer: the head, whose output is in these units.
        scale: of the numbers to learn.
    """

    scorer: HeadScorer
    scale: TargetScale

    def forward_inputs(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs:
        batch, places = self.scorer.make_batch(front, [example.encoded for example in examples], lm.device)
        wanted = [self.scale.standardized(example.value) for example in examples]

        def criterion(outputs: Tensor) -> Tensor:
            scores = self.scorer.scores(outputs)[:, 0]
            return F.mse_loss(scores, torch.tensor(wanted, device=scores.device, dtype=scores.dtype), reduction="sum")

        return LossInputs(batch, places, True, criterion)

    def normalizer(self, examples: Sequence[Example]) -> float:
        return float(len(examples))
