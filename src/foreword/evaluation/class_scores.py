"""`ClassScores`: precision, recall, F1 and support of one label, or of one type of span."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, from 0 to 1; 0 where the denominator is 0, as in scikit-learn.

    Attributes:
        precision: true positives among the predictions of the class.
        recall: true positives among the references of the class.
        f1: harmonic mean of both.
        support: references of the class.
    """

    precision: float
    recall: float
    f1: float
    support: int

    @classmethod
    def from_counts(cls, hits: int, predicted: int, expected: int) -> ClassScores:
        """From the numbers of true positives, predictions and references."""
        return cls(
            precision=hits / predicted if predicted else 0.0,
            recall=hits / expected if expected else 0.0,
            f1=2 * hits / (predicted + expected) if hits else 0.0,
            support=expected,
        )
