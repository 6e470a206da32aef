"""`Proof`: how near a model comes to Transformers alone when it answers behind prefixes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """Result of the support probe, kept with the model that passed it.

    Attributes:
        difference: root mean square of the outputs' differences to Transformers' own forward of the joined texts.
        effect: the same between rows with and without their prefixes, the scale for ``difference``.
        tolerance: the largest ``difference`` that is rounding.
        draws: texts that were compared.
    """

    difference: float
    effect: float
    tolerance: float
    draws: int

    @property
    def share(self) -> float:
        """Share of the tolerance that was used; above 1 the model is refused."""
        return self.difference / self.tolerance if self.tolerance else float(self.difference > 0)

    def __str__(self) -> str:
        return f"{self.difference:.2g} apart (root mean square), {self.share:.0%} of what rounding may do"
