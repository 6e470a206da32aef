"""`Trial`: one point of a search, how it did, and which trials give up their place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from foreword.training.search.space import Point

State = Literal["learning", "complete", "dropped", "failed"]


@dataclass
class Trial:
    """What was tried, and how it went.

    Attributes:
        number: from 0, in the order in which trials started.
        point: the settings that are its own.
        steps: optimizer steps that it would take in all.
        batch_size: examples a step.
        step: steps done.
        evaluations: figures on the held-out rows, each with the ``step``; the ``score`` among them chooses.
        state: what has become of it.
        best: highest score so far.
        why: what went wrong, if it failed.
    """

    number: int
    point: Point
    steps: int
    batch_size: int
    step: int = 0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    state: State = "learning"
    best: float | None = None
    why: str = ""

    @property
    def at_best(self) -> dict[str, float]:
        """The figures of its best evaluation; empty before the first."""
        return next((each for each in self.evaluations if each["score"] == self.best), {})

    @property
    def headline(self) -> dict[str, float]:
        """Of those, the figure that tasks are compared by, and the loss."""
        names = [name for name in self.at_best if name not in ("step", "score")]
        return {name: self.at_best[name] for name in dict.fromkeys((*names[:1], "loss")) if name in self.at_best}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """Inverse of `to_json`. Raises TypeError for anything else."""
        return cls(**data)


def rungs(eta: int, evaluations: int) -> tuple[int, ...]:
    """After which evaluations trials are compared: the first, the eta-th, its square and so on, but not the last."""
    return tuple(eta**power for power in range(evaluations) if eta**power < evaluations)


def losers(trials: Sequence[Trial], arrived: Iterable[Trial], rung: int, eta: int) -> list[Trial]:
    """Of those that have just come to a rung, the ones that are not among the best ``1/eta`` of all that ever have.

    Successive halving without waiting (ASHA, Li et al. 2020, arXiv:1810.05934), in the form that stops trials rather
    than pausing them; trials that arrive together are compared together. What counts is the best score so far, as it
    does in the end; of equals the earlier trial stays.
    """
    reached = [trial for trial in trials if len(trial.evaluations) >= rung and trial.state != "failed"]
    ranked = sorted(reached, key=lambda trial: (-max(e["score"] for e in trial.evaluations[:rung]), trial.number))
    stay = {trial.number for trial in ranked[: math.ceil(len(ranked) / eta)]}
    return [trial for trial in arrived if trial.number not in stay]


def ranking(trials: Iterable[Trial]) -> list[Trial]:
    """The best first: those that were learned to the end, then those that were dropped, then those that failed."""
    order = ("complete", "learning", "dropped", "failed")
    return sorted(
        trials, key=lambda t: (order.index(t.state), -(t.best if t.best is not None else -math.inf), t.number)
    )
