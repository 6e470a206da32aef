"""Opinions: what the models of several patterns say of rows without labels, and what they agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Of the softmax that turns mean scores into soft labels (Schick and Schütze 2021, arXiv:2001.07676, section 3.3).
TEMPERATURE = 2.0


@dataclass(frozen=True)
class PatternPredictions:
    """One pattern's.

    Attributes:
        trust: how far it counts: the pattern's accuracy on the training rows before it learned.
        held: figure of its model on the evaluation rows.
        scores: log-probability of every label, for every row.
    """

    trust: float
    held: float
    scores: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"trust": self.trust, "held": self.held, "scores": [list(row) for row in self.scores]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PatternPredictions:
        """Inverse of `to_json`."""
        return cls(float(data["trust"]), float(data["held"]), tuple(tuple(row) for row in data["scores"]))


def soft_labels(opinions: Sequence[PatternPredictions]) -> list[tuple[float, ...]]:
    """A probability of every label for every row: the softmax of the mean scores, each counted by its trust."""
    trusts = torch.tensor([opinion.trust for opinion in opinions])
    # Patterns that all know nothing are equally good.
    shares = trusts / trusts.sum() if trusts.sum() > 0 else torch.full_like(trusts, 1 / len(opinions))
    scores = torch.tensor([opinion.scores for opinion in opinions])
    mean = (shares[:, None, None] * scores).sum(0)
    return [tuple(row) for row in (mean / TEMPERATURE).softmax(-1).tolist()]
