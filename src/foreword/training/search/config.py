"""`SearchConfig`: what a search varies, how often, and how it treats trials that lose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from foreword.errors import SettingError
from foreword.prompts.registry import method
from foreword.training.recipe import Recipe
from foreword.training.search.space import Point, SearchSpace, where
from foreword.training.setting import flag_of

TRIALS = 32
AT_ONCE = 16
HALVING = 3
# Combinations that are checked before anything starts; what is wrong beyond them fails a trial.
CHECKED = 2000
OFF = ("off", "no", "false", "0")


@dataclass(frozen=True)
class SearchConfig:
    """How a search goes.

    Attributes:
        space: what is varied.
        trials: how many points are tried.
        at_once: how many of them learn in one batch.
        eta: of the trials at a rung one in so many goes on; ``None`` if all are learned to the end.
    """

    space: SearchSpace
    trials: int
    at_once: int
    eta: int | None

    @classmethod
    def of(
        cls, search: object, trials: object = None, at_once: object = None, halving: object = HALVING
    ) -> SearchConfig:
        """A plan from the keys of a recipe: ``search``, ``trials``, ``at_once`` and ``halving`` (a number or off).

        Raises SettingError that names the key.
        """
        space = SearchSpace.parse(search)
        tried = _count("trials", trials if trials is not None else space.size or TRIALS)
        return cls(space, tried, _count("at_once", at_once if at_once is not None else AT_ONCE), _eta(halving))

    def check(self, recipe: Recipe) -> None:
        """Raise SettingError, or UsageError of the method, for a point that no run could have, or for a recipe that
        does more than one run can share."""
        for name, usual in (("members", 1), ("warm_start", None), ("report_to", "none")):
            if getattr(recipe, name) != usual:
                raise SettingError(name, f"{flag_of(name)} is of a single run, not of a search; leave it out.")
        if "seed" in self.space.domains and recipe.eval is None:
            raise SettingError(
                where("seed"),
                "seed draws the held-out rows, too, so its scores could not be compared; name the rows with eval.",
            )
        for point in self.checked():
            self.recipe(recipe, point)

    def checked(self) -> Iterator[Point]:
        """The points that stand for all."""
        return islice(self.space.corners(), CHECKED)

    def recipe(self, base: Recipe, point: Point) -> Recipe:
        """The recipe of one trial. Raises SettingError that names the key that is varied."""
        if "epochs" in point:
            base = replace(base, max_steps=None)
        elif "max_steps" in point:
            base = replace(base, epochs=None)
        with varied(point):
            recipe = replace(base, **point)
            found = method(recipe.method, **recipe.options)
        if recipe.method in ("pet", "autoprompt") or not found.learns:
            key = where("method") if "method" in point else "method"
            raise SettingError(key, f"--method {recipe.method} is no prompt that an optimizer learns; choose another.")
        return recipe

    def to_json(self) -> dict[str, Any]:
        spelled = {name: domain.to_json() for name, domain in self.space.domains.items()}
        return {"search": spelled, "trials": self.trials, "at_once": self.at_once, "halving": self.eta}


@contextmanager
def varied(point: Point) -> Iterator[None]:
    """Name the key that is varied in an error about the value that a point gives it."""
    try:
        yield
    except SettingError as error:
        raise SettingError(where(error.key) if error.key in point else error.key, str(error)) from None


def _count(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(key, f"{flag_of(key)} must be a whole number above 0, got {value!r}.")
    return value


def _eta(value: object) -> int | None:
    # To YAML, off is false.
    if value is None or value is False or value in OFF:
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isdigit() or int(text) < 2:
        raise SettingError(
            "halving", f"--halving must be a whole number from 2, of which one goes on, or off, got {value!r}."
        )
    return int(text)
