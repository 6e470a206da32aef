"""How figures are compared: candidates take turns, and a ratio is taken within every turn.

Machines are shared and noisy, so an absolute time says little. What disturbs a turn disturbs all who are measured in
it, and mostly cancels in the ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A figure that was taken several times: its median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def interleaved(candidates: Sequence[str], rounds: int, measure: Callable[[str, int], float]) -> dict[str, list[float]]:
    """Let candidates take turns: A B C, A B C, ...

    Args:
        candidates: names, in order.
        rounds: turns that count; one more comes first and does not, to warm up.
        measure: ``(candidate, turn) -> figure``; the turn is 0 for the warm-up.

    Returns:
        Figures of every candidate, a round each.
    """
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name in candidates:
            figure = measure(name, turn)
            if turn:
                figures[name].append(figure)
    return figures


def times_better(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times better we are at a cost (seconds, bytes), turn by turn: theirs over ours."""
    return Spread.of([other / own for own, other in zip(ours, theirs, strict=True)])


def compared(seconds: Mapping[str, Sequence[float]], ours: str) -> dict[str, Any]:
    """What a record keeps of candidates that took turns at one piece of work.

    Args:
        seconds: of every candidate, a turn each.
        ours: which of them is Foreword.

    Returns:
        ``runs`` with the ``seconds`` of every candidate, and ``ratios`` of every peer: how many times faster we are.
    """
    return {
        "runs": {name: {"seconds": Spread.of(figures).to_json()} for name, figures in seconds.items()},
        "ratios": {
            name: times_better(seconds[ours], figures).to_json() for name, figures in seconds.items() if name != ours
        },
    }
