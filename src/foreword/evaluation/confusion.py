"""`ConfusionMatrix`: counts of predicted labels by reference label, and the metrics that follow from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.evaluation.class_scores import ClassScores


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of predicted labels by reference label.

    Attributes:
        labels: in the order of rows and columns.
        counts: ``counts[expected][predicted]``.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_predictions(
        cls, predicted: Sequence[str], expected: Sequence[str], labels: Sequence[str] = ()
    ) -> ConfusionMatrix:
        """Count pairs; ``labels`` come first and in their order, then other labels that occur, by name."""
        pairs = Counter(zip(expected, predicted, strict=True))
        names = tuple(dict.fromkeys([*labels, *sorted({*predicted, *expected})]))
        return cls(names, tuple(tuple(pairs[row, column] for column in names) for row in names))

    @property
    def expected(self) -> tuple[int, ...]:
        """References of each label."""
        return tuple(map(sum, self.counts))

    @property
    def predicted(self) -> tuple[int, ...]:
        """Predictions of each label."""
        return tuple(map(sum, zip(*self.counts, strict=True)))

    @property
    def hits(self) -> tuple[int, ...]:
        """True positives of each label."""
        return tuple(row[place] for place, row in enumerate(self.counts))

    def per_class(self) -> dict[str, ClassScores]:
        """Precision, recall, F1 and support of every label."""
        columns = zip(self.labels, self.hits, self.predicted, self.expected, strict=True)
        return {label: ClassScores.from_counts(*counts) for label, *counts in columns}

    def accuracy(self) -> float:
        """Share of correct predictions."""
        return sum(self.hits) / sum(self.expected)

    def macro_f1(self) -> float:
        """F1 of every label that occurs in predictions or references, averaged with equal weight."""
        counts = zip(self.per_class().values(), self.predicted, self.expected, strict=True)
        scores = [each.f1 for each, predicted, expected in counts if predicted + expected]
        return sum(scores) / len(scores)

    def matthews_corrcoef(self) -> float:
        """Matthews correlation coefficient, -1 to 1, for any number of labels: R_K of Gorodkin (2004).

        0, the value of a guess, where predictions or references have one label only.
        """
        total = sum(self.expected)
        covariance = total * sum(self.hits) - sum(p * e for p, e in zip(self.predicted, self.expected, strict=True))
        variances = [total**2 - sum(count**2 for count in counts) for counts in (self.predicted, self.expected)]
        return covariance / math.sqrt(variances[0] * variances[1]) if all(variances) else 0.0

    def mistakes(self) -> list[tuple[str, str, int]]:
        """Expected label, predicted label and count of every wrong pair, the most frequent first."""
        pairs = [
            (self.labels[row], self.labels[column], count)
            for row, counts in enumerate(self.counts)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        return sorted(pairs, key=lambda pair: -pair[2])
