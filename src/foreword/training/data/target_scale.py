"""`TargetScale`: mean and deviation of the numbers to learn, so that one learning rate fits grades and prices."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foreword.errors import DataError


@dataclass(frozen=True)
class TargetScale:
    """Numbers are learned as ``(number - mean) / deviation``; the head that is stored undoes it."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, values: Sequence[float], *, centred: bool = True) -> TargetScale:
        """The scale of training targets.

        Args:
            centred: subtract the mean, which the bias of the head adds again.

        Raises DataError if all are equal.
        """
        deviation = statistics.pstdev(values)
        if not deviation:
            raise DataError(f"every row has the number {values[0]:g}; there is nothing to learn from.")
        return cls(statistics.fmean(values) if centred else 0.0, deviation)

    def standardized(self, value: float) -> float:
        return (value - self.mean) / self.deviation

    def unfolded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a head whose output is the number itself."""
        return weight * self.deviation, bias * self.deviation + self.mean
