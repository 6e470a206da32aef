"""`Confusion`: how often each label was taken for each, and every figure that follows from these counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.evaluation.class_scores import ClassScores


@dataclass(frozen=True)
class Confusion:
    """Counts of a labelling against its references.

    Attributes:
        labels: in the order of rows and columns.
        counts: ``counts[expected][predicted]``.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, predicted: Sequence[str], expected: Sequence[str], labels: Sequence[str] = ()) -> Confusion:
        """Count pairs; ``labels`` come first and in their order, others that occur behind them by name."""
        pairs = Counter(zip(expected, predicted, strict=True))
        names = tuple(dict.fromkeys([*labels, *sorted({*predicted, *expected})]))
        return cls(names, tuple(tuple(pairs[row, column] for column in names) for row in names))

    @property
    def expected(self) -> tuple[int, ...]:
        """How often each label is the right one."""
        return tuple(map(sum, self.counts))

    @property
    def predicted(self) -> tuple[int, ...]:
        """How often each label was given."""
        return tuple(map(sum, zip(*self.counts, strict=True)))

    @property
    def hits(self) -> tuple[int, ...]:
        """How often each label was given rightly."""
        return tuple(row[place] for place, row in enumerate(self.counts))

    def per_class(self) -> dict[str, ClassScores]:
        """Precision, recall, F1 and support of every label."""
        columns = zip(self.labels, self.hits, self.predicted, self.expected, strict=True)
        return {label: ClassScores.of(hits, given, there) for label, hits, given, there in columns}

    def accuracy(self) -> float:
        """Share of the right ones."""
        return sum(self.hits) / sum(self.expected)

    def macro_f1(self) -> float:
        """F1 of every label that occurs in predictions or references, averaged with equal weight."""
        occurring = [given + there > 0 for given, there in zip(self.predicted, self.expected, strict=True)]
        scores = [found.f1 for found, occurs in zip(self.per_class().values(), occurring, strict=True) if occurs]
        return sum(scores) / len(scores)

    def matthews(self) -> float:
        """Matthews correlation from -1 to 1, for any number of labels: R_K of Gorodkin (2004).

        0, the figure of a guess, where predictions or references have one label only.
        """
        total = sum(self.expected)
        together = total * sum(self.hits) - sum(p * e for p, e in zip(self.predicted, self.expected, strict=True))
        spread = [total**2 - sum(count**2 for count in counts) for counts in (self.predicted, self.expected)]
        return together / math.sqrt(spread[0] * spread[1]) if all(spread) else 0.0

    def mistakes(self) -> list[tuple[str, str, int]]:
        """Expected label, predicted label and count of every mistake made, the most frequent first."""
        found = [
            (self.labels[row], self.labels[column], count)
            for row, counts in enumerate(self.counts)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        return sorted(found, key=lambda mistake: -mistake[2])
