"""Samplers: which parameters the next trial of a search gets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from foreword.errors import UsageError
from foreword.training.search.space import Categorical, SearchSpace, TrialParams
from foreword.training.search.trial import Trial

if TYPE_CHECKING:
    from optuna.trial import Trial as OptunaTrial

# Proposals of parameters that were tried already, after which the space counts as exhausted.
MAX_DUPLICATES = 100


class Sampler(Protocol):
    """Ask-and-tell sampler of parameters, as in Optuna. Its proposals depend on what it was told and on its seed alone,
    so that a resumed search tries what it would have tried."""

    def ask(self) -> TrialParams | None:
        """Parameters of the next trial; ``None`` if there are none left."""
        ...

    def replay(self, params: TrialParams) -> None:
        """Take these as the parameters of the next trial: an earlier process asked for them."""
        ...

    def report(self, number: int, evaluation: int, score: float) -> None:
        """Report the score of a trial after its first, second, ... evaluation; more is better."""
        ...

    def tell(self, trial: Trial) -> None:
        """Tell that a trial has ended, with its state and best score."""
        ...


def make_sampler(space: SearchSpace, trials: int, seed: int) -> Sampler:
    """A grid in random order if ``trials`` covers it, else Optuna's tree-structured Parzen estimator."""
    if space.size is not None and space.size <= trials:
        return GridSampler(space, seed)
    return TPESampler(space, seed)


class GridSampler:
    """Every combination of a space without ranges, once."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._remaining = list(space.grid())
        # In random order, so that the first trials to be dropped are compared with others of all kinds.
        random.Random(seed).shuffle(self._remaining)

    def ask(self) -> TrialParams | None:
        return self._remaining.pop(0) if self._remaining else None

    def replay(self, params: TrialParams) -> None:
        self._remaining.remove(params)

    def report(self, number: int, evaluation: int, score: float) -> None:
        del number, evaluation, score

    def tell(self, trial: Trial) -> None:
        del trial


class TPESampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna; never proposes the same parameters twice.

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
        self._trials: list[OptunaTrial] = []
        self._tried: list[TrialParams] = []

    def ask(self) -> TrialParams | None:
        for attempt in range(MAX_DUPLICATES):
            # A new sampler for every proposal: its draws must not depend on what was drawn before a restart.
            seed = random.Random(f"{self._seed} {len(self._trials)} {attempt}").randrange(2**32)
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = self._study.ask()
            params = _suggest(trial, self._space)
            if params not in self._tried:
                self._add(trial, params)
                return params
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return None

    def replay(self, params: TrialParams) -> None:
        self._study.enqueue_trial(params)
        trial = self._study.ask()
        self._add(trial, _suggest(trial, self._space))

    def report(self, number: int, evaluation: int, score: float) -> None:
        self._trials[number].report(score, evaluation)

    def tell(self, trial: Trial) -> None:
        states = self._optuna.trial.TrialState
        if trial.state == "complete":
            self._study.tell(self._trials[trial.number], trial.best_score)
        else:
            state = states.PRUNED if trial.state == "dropped" else states.FAIL
            self._study.tell(self._trials[trial.number], state=state)

    def _add(self, trial: OptunaTrial, params: TrialParams) -> None:
        self._trials.append(trial)
        self._tried.append(params)


def _suggest(trial: OptunaTrial, space: SearchSpace) -> TrialParams:
    params: dict[str, Any] = {}
    for name, domain in space.domains.items():
        if isinstance(domain, Categorical):
            params[name] = trial.suggest_categorical(name, domain.values)
        elif domain.integer:
            params[name] = trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
        else:
            params[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    return params


def format_params(params: Mapping[str, Any]) -> str:
    """Parameters as a log line shows them."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in params.items())


def format_value(value: object) -> str:
    """A parameter's value as tables and log lines show it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
