"""`Trial`: one set of searched parameters and its evaluations; which trials successive halving stops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from foreword.training.search.space import TrialParams

TrialState = Literal["learning", "complete", "dropped", "failed"]
"""``dropped``: stopped early by successive halving, which Optuna calls pruned."""

# Keys of JSON records whose attributes have other names.
_JSON_KEYS = {"params": "point", "best_score": "best", "error": "why"}


@dataclass
class Trial:
    """One set of parameters, and how the run with them went.

    Attributes:
        number: from 0, in the order in which trials started.
        params: a value for every key that is searched.
        steps: optimizer steps of the whole run.
        batch_size: examples a step.
        step: steps done.
        evaluations: metrics on the held-out rows, each with its ``step``; ``score`` selects the best.
        state: see `TrialState`.
        best_score: highest ``score`` so far.
        error: message of a failed trial.
    """

    number: int
    params: TrialParams
    steps: int
    batch_size: int
    step: int = 0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    state: TrialState = "learning"
    best_score: float | None = None
    error: str = ""

    @property
    def best_metrics(self) -> dict[str, float]:
        """Metrics of the evaluation with the best score; empty before the first."""
        return next((each for each in self.evaluations if each["score"] == self.best_score), {})

    @property
    def headline_metrics(self) -> dict[str, float]:
        """Of `best_metrics`, the first (accuracy, F1 of spans) and the loss."""
        metrics = {name: value for name, value in self.best_metrics.items() if name not in ("step", "score")}
        return {name: metrics[name] for name in dict.fromkeys((*list(metrics)[:1], "loss")) if name in metrics}

    def to_json(self) -> dict[str, Any]:
        """The record of the trial in ``trials.jsonl`` and ``state.json``."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """Inverse of `to_json`. Raises TypeError for anything else."""
        names = {key: name for name, key in _JSON_KEYS.items()}
        return cls(**{names.get(key, key): value for key, value in data.items()})


def rungs(eta: int, evaluations: int) -> tuple[int, ...]:
    """Numbers of evaluations after which trials are compared: 1, eta, eta squared and so on, all but the last."""
    return tuple(eta**power for power in range(evaluations) if eta**power < evaluations)


def trials_to_drop(trials: Sequence[Trial], arrived: Iterable[Trial], rung: int, eta: int) -> list[Trial]:
    """Those of the trials that have just arrived at a rung that are not in the best ``1/eta`` of all that reached it.

    Asynchronous successive halving (ASHA, Li et al. 2020, arXiv:1810.05934) in its variant that stops trials rather
    than pausing them; trials that arrive together are compared together. They are compared by their best score so
    far, which also decides at the end; of equal scores the earlier trial stays.
    """
    reached = [trial for trial in trials if len(trial.evaluations) >= rung and trial.state != "failed"]
    ranked = sorted(reached, key=lambda trial: (-max(e["score"] for e in trial.evaluations[:rung]), trial.number))
    promoted = {trial.number for trial in ranked[: math.ceil(len(ranked) / eta)]}
    return [trial for trial in arrived if trial.number not in promoted]


def rank_trials(trials: Iterable[Trial]) -> list[Trial]:
    """The best first: complete trials, then those still learning, dropped and failed, each by their best score."""
    order = ("complete", "learning", "dropped", "failed")
    return sorted(
        trials,
        key=lambda trial: (
            order.index(trial.state),
            -(trial.best_score if trial.best_score is not None else -math.inf),
            trial.number,
        ),
    )
