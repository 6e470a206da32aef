"""Soft labels: the combined predictions of several patterns' models for unlabeled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Of the softmax that turns mean scores into soft labels (Schick and Schütze 2021, arXiv:2001.07676, section 3.3).
TEMPERATURE = 2.0


@dataclass(frozen=True)
class PatternPredictions:
    """Predictions of one pattern's model for unlabeled rows.

    Attributes:
        weight: of the pattern among the others: its accuracy on the training rows before training.
        metric: of its model on the evaluation rows.
        scores: log-probability of every label, for every row.
    """

    weight: float
    metric: float
    scores: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"trust": self.weight, "held": self.metric, "scores": [list(row) for row in self.scores]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PatternPredictions:
        """Inverse of `to_json`."""
        return cls(float(data["trust"]), float(data["held"]), tuple(tuple(map(float, row)) for row in data["scores"]))


def soft_labels(predictions: Sequence[PatternPredictions]) -> list[tuple[float, ...]]:
    """A probability of every label for every row: the softmax of the weighted mean of the patterns' scores."""
    weights = torch.tensor([each.weight for each in predictions])
    # Patterns that are all of no use untrained count equally.
    shares = weights / weights.sum() if weights.sum() > 0 else torch.full_like(weights, 1 / len(predictions))
    scores = torch.tensor([each.scores for each in predictions])
    mean = (shares[:, None, None] * scores).sum(0)
    return [tuple(row) for row in (mean / TEMPERATURE).softmax(-1).tolist()]
