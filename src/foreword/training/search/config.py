"""`SearchConfig`: the space of a search, its number of trials, and its successive halving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

from foreword.errors import SettingError
from foreword.prompts.registry import get_method
from foreword.training.recipe import Recipe
from foreword.training.search.space import SearchSpace, TrialParams, search_key
from foreword.training.setting import flag_of

DEFAULT_TRIALS = 32
DEFAULT_AT_ONCE = 16
DEFAULT_ETA = 3
# Combinations that are checked before anything starts; an error beyond them fails its trial.
MAX_CHECKED = 2000
OFF_VALUES = ("off", "no", "false", "0")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        space: the keys that are searched.
        trials: how many sets of parameters are tried.
        at_once: trials in one batch.
        eta: reduction factor of successive halving: one in so many trials goes on at a rung; ``None`` without halving.
    """

    space: SearchSpace
    trials: int
    at_once: int
    eta: int | None

    @classmethod
    def of(
        cls, search: object, trials: object = None, at_once: object = None, halving: object = DEFAULT_ETA
    ) -> SearchConfig:
        """From the keys of a recipe: ``search``, ``trials``, ``at_once`` and ``halving`` (a number or off).

        Raises SettingError that names the key.
        """
        space = SearchSpace.parse(search)
        count = _parse_count("trials", trials if trials is not None else space.size or DEFAULT_TRIALS)
        at_once = _parse_count("at_once", at_once if at_once is not None else DEFAULT_AT_ONCE)
        return cls(space, count, at_once, _parse_eta(halving))

    def check(self, recipe: Recipe) -> None:
        """Raise SettingError, or UsageError of the method, for parameters that no run could have, or for a recipe
        whose run cannot be a trial."""
        for name, default in (("members", 1), ("warm_start", None), ("report_to", "none")):
            if getattr(recipe, name) != default:
                raise SettingError(name, f"{flag_of(name)} is of a single run, not of a search; leave it out.")
        if "seed" in self.space.domains and recipe.eval is None:
            raise SettingError(
                search_key("seed"),
                "seed draws the held-out rows, too, so its scores could not be compared; name the rows with eval.",
            )
        for params in self.params_to_check():
            self.trial_recipe(recipe, params)

    def check_not_overridden(self, recipe: Recipe) -> None:
        """Raise SettingError for a setting that the recipe gives although the search varies it."""
        defaults = {field.name: field.default for field in fields(recipe)}
        # The recipe's seed is that of the sampler, also where trials have other seeds.
        varied = set(self.space.domains) - {"seed"}
        if varied & {"epochs", "max_steps"}:
            varied |= {"epochs", "max_steps"}
        for key in sorted(varied):
            if getattr(recipe, key) != defaults[key]:
                raise SettingError(
                    key, f"{flag_of(key)} would be ignored, since the search varies it; leave one of them out."
                )

    def parents(self, recipe: Recipe) -> list[str]:
        """Names of the tasks that trials are initialized from."""
        inits = [params["init"] for params in self.params_to_check() if "init" in params] or [recipe.init]
        return sorted({init.removeprefix("task:") for init in inits if init.startswith("task:")})

    def params_to_check(self) -> Iterator[TrialParams]:
        """The parameters that are checked in place of all."""
        return islice(self.space.grid(), MAX_CHECKED)

    def trial_recipe(self, base: Recipe, params: TrialParams) -> Recipe:
        """The recipe of one trial. Raises SettingError that names the key below ``search:``."""
        if "epochs" in params:
            base = replace(base, max_steps=None)
        elif "max_steps" in params:
            base = replace(base, epochs=None)
        with errors_name_search_key(params):
            recipe = replace(base, **params)
            chosen = get_method(recipe.method, **recipe.method_options)
        if recipe.method in ("pet", "autoprompt") or not chosen.learns:
            key = search_key("method") if "method" in params else "method"
            raise SettingError(key, f"--method {recipe.method} is no prompt that an optimizer learns; choose another.")
        return recipe

    def to_json(self) -> dict[str, Any]:
        space = {name: domain.to_json() for name, domain in self.space.domains.items()}
        return {"search": space, "trials": self.trials, "at_once": self.at_once, "halving": self.eta}


@contextmanager
def errors_name_search_key(params: TrialParams) -> Iterator[None]:
    """Let a SettingError about a searched value name its key below ``search:``."""
    try:
        yield
    except SettingError as error:
        raise SettingError(search_key(error.key) if error.key in params else error.key, str(error)) from None


def _parse_count(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(key, f"{flag_of(key)} must be a whole number above 0, got {value!r}.")
    return value


def _parse_eta(value: object) -> int | None:
    # To YAML, off is false.
    if value is None or value is False or value in OFF_VALUES:
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isdigit() or int(text) < 2:
        raise SettingError(
            "halving", f"--halving must be a whole number from 2, of which one goes on, or off, got {value!r}."
        )
    return int(text)
