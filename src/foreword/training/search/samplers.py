"""Points: who chooses what the next trial tries."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from foreword.errors import UsageError
from foreword.training.search.space import Categorical, Point, SearchSpace
from foreword.training.search.trial import Trial

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

# How often a point that was tried already is asked for again before the space counts as exhausted.
ATTEMPTS = 100


class Sampler(Protocol):
    """Gives points by number, and hears how they did. What it gives depends on that and on its seed alone, so that a
    search that goes on after a restart tries what it would have tried."""

    def ask(self) -> Point | None:
        """The next point; ``None`` if there is none left."""
        ...

    def again(self, point: Point) -> None:
        """Take a point for the one that was asked for next: one that an earlier process tried."""
        ...

    def hear(self, number: int, evaluation: int, score: float) -> None:
        """How a trial stands after its first, second, ... evaluation; more is better."""
        ...

    def end(self, trial: Trial) -> None:
        """A trial has ended, as its state says."""
        ...


def make_sampler(space: SearchSpace, trials: int, seed: int) -> Sampler:
    """Every point once if there are few enough, in random order; else what Optuna proposes."""
    if space.size is not None and space.size <= trials:
        return GridSampler(space, seed)
    return TPESampler(space, seed)


class GridSampler:
    """All points of a space of lists."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._left = list(space.corners())
        # In random order: what is dropped first is compared with others of all kinds.
        random.Random(seed).shuffle(self._left)

    def ask(self) -> Point | None:
        return self._left.pop(0) if self._left else None

    def again(self, point: Point) -> None:
        self._left.remove(point)

    def hear(self, number: int, evaluation: int, score: float) -> None:
        del number, evaluation, score

    def end(self, trial: Trial) -> None:
        del trial


class TPESampler:
    """What a tree-structured Parzen estimator thinks best (Bergstra et al. 2011; Optuna), no point twice.

    Trials that are still learning count as bad ones meanwhile ("constant liar"), so that those that start together
    differ.

    Raises:
        UsageError: Optuna is not installed.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise UsageError(
                "choosing among more points than trials needs Optuna; pip install 'foreword[search]', or list no more "
                "values than --trials can try."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._study = optuna.create_study(direction="maximize")
        self._asked: list[Asked] = []
        self._seen: list[Point] = []

    def ask(self) -> Point | None:
        for attempt in range(ATTEMPTS):
            # A sampler of its own for every point: what it draws must not depend on what was drawn before a restart.
            drawn = random.Random(f"{self._seed} {len(self._asked)} {attempt}").randrange(2**32)
            self._study.sampler = self._optuna.samplers.TPESampler(seed=drawn, constant_liar=True)
            trial = self._study.ask()
            point = _suggested(trial, self._space)
            if point not in self._seen:
                self._take(trial, point)
                return point
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return None

    def again(self, point: Point) -> None:
        self._study.enqueue_trial(point)
        trial = self._study.ask()
        self._take(trial, _suggested(trial, self._space))

    def hear(self, number: int, evaluation: int, score: float) -> None:
        self._asked[number].report(score, evaluation)

    def end(self, trial: Trial) -> None:
        states = self._optuna.trial.TrialState
        if trial.state == "complete":
            self._study.tell(self._asked[trial.number], trial.best)
        else:
            ended = states.PRUNED if trial.state == "dropped" else states.FAIL
            self._study.tell(self._asked[trial.number], state=ended)

    def _take(self, asked: Asked, point: Point) -> None:
        self._asked.append(asked)
        self._seen.append(point)


def _suggested(trial: Asked, space: SearchSpace) -> Point:
    found: dict[str, Any] = {}
    for name, domain in space.domains.items():
        if isinstance(domain, Categorical):
            found[name] = trial.suggest_categorical(name, domain.values)
        elif domain.whole:
            found[name] = trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
        else:
            found[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    return found


def shown(point: Mapping[str, Any]) -> str:
    """A point for a person."""
    return ", ".join(f"{name} {spelled(value)}" for name, value in point.items())


def spelled(value: object) -> str:
    """One of its values for a person."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
