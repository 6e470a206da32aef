"""`Proof`: how near a model comes to Transformers alone when it answers behind prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Outputs behind prefixes and those of the joined texts.

    Attributes:
        difference: root mean square of the differences between the two.
        effect: the same between rows with and without their prefixes, the scale for ``difference``.
        tolerance: the largest ``difference`` that is rounding.
    """

    difference: float
    effect: float
    tolerance: float

    @property
    def share(self) -> float:
        """Share of the tolerance that is used up; above 1 the outputs are wrong."""
        return self.difference / self.tolerance if self.tolerance else float(self.difference > 0)


@dataclass(frozen=True)
class Proof(Comparison):
    """Result of the support probe, kept with the model that passed it: the comparison with the median share.

    Attributes:
        draws: comparisons that were made, each of its own texts.
    """

    draws: int

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Proof:
        ordered = sorted(comparisons, key=lambda each: each.share)
        median = ordered[len(ordered) // 2]
        return cls(median.difference, median.effect, median.tolerance, len(ordered))

    def __str__(self) -> str:
        share = f"{self.share:.0%} of the tolerance for rounding" if self.share >= 0.01 else "under 1% of the tolerance"
        return f"{self.difference:.2g} apart (root mean square), {share}"
