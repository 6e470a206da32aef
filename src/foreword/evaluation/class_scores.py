"""`ClassScores`: how well one label, or one type of span, is found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class, each from 0 to 1; 0 where there is nothing to divide by, as in scikit-learn.

    Attributes:
        precision: share of what was called so that is so.
        recall: share of what is so that was called so.
        f1: harmonic mean of both.
        support: how many there are among the references.
    """

    precision: float
    recall: float
    f1: float
    support: int

    @classmethod
    def of(cls, hits: int, predicted: int, expected: int) -> ClassScores:
        """From counts: right ones, all that were predicted, all that there are."""
        return cls(
            precision=hits / predicted if predicted else 0.0,
            recall=hits / expected if expected else 0.0,
            f1=2 * hits / (predicted + expected) if hits else 0.0,
            support=expected,
        )
