"""`SearchSpace`: which settings a search varies, and over what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from types import NoneType
from typing import Any

from foreword.errors import SettingError
from foreword.training.recipe import Recipe
from foreword.training.setting import check_type, settings_of, types_in

SEARCHABLE = (
    "method",
    "length",
    "init",
    "init_text",
    "lr",
    "epochs",
    "max_steps",
    "batch_size",
    "class_weights",
    "rank",
    "encoder",
    "projection",
    "freeze_first",
    "seed",
)
"""Keys of a recipe that trials may differ in; data, template and labels are the same for all trials."""

TrialParams = dict[str, Any]
"""A value for every key that is searched."""

_BOUNDS = ("low", "high", "log")


@dataclass(frozen=True)
class Categorical:
    """Values to choose from."""

    values: tuple[Any, ...]

    def to_json(self) -> list[Any]:
        return list(self.values)


@dataclass(frozen=True)
class NumberRange:
    """Numbers between two bounds, both included.

    Attributes:
        log: drawn evenly over their logarithm.
        integer: only whole numbers.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class SearchSpace:
    """The keys that are searched, in their order, each with its values or range."""

    domains: Mapping[str, Categorical | NumberRange]

    @classmethod
    def parse(cls, search: object) -> SearchSpace:
        """Read a ``search:`` mapping. Raises SettingError that names the key as ``search.KEY``."""
        if not isinstance(search, Mapping) or not search:
            raise SettingError(
                "search", "--search must be a mapping of keys to lists or ranges, such as 'lr: [1e-3, 5e-3]'."
            )
        return cls({_parse_key(name): _parse_domain(_parse_key(name), value) for name, value in search.items()})

    @property
    def size(self) -> int | None:
        """Number of combinations; ``None`` if one of the keys has a range."""
        counts = [len(domain.values) if isinstance(domain, Categorical) else None for domain in self.domains.values()]
        known = [count for count in counts if count is not None]
        return math.prod(known) if len(known) == len(counts) else None

    def grid(self) -> Iterator[TrialParams]:
        """Every combination of values; of a range, its two bounds."""
        values_by_key = [d.values if isinstance(d, Categorical) else (d.low, d.high) for d in self.domains.values()]
        for values in product(*values_by_key):
            yield dict(zip(self.domains, values, strict=True))


def search_key(key: str) -> str:
    """The name of a key below ``search:`` in errors."""
    return f"search.{key}"


def _parse_key(name: object) -> str:
    key = str(name).replace("-", "_")
    if key not in SEARCHABLE:
        matches = get_close_matches(key, SEARCHABLE, n=1)
        mend = f"did you mean {matches[0]!r}?" if matches else f"it takes {', '.join(SEARCHABLE)}."
        raise SettingError(search_key(key), f"a search cannot vary {key!r}; {mend}")
    return key


def _parse_domain(key: str, value: object) -> Categorical | NumberRange:
    if isinstance(value, Mapping):
        return _parse_range(key, value)
    if not isinstance(value, list | tuple) or not value:
        raise SettingError(
            search_key(key), f"{key} must be a list of values or a range such as {{low: 1, high: 9}}, got {value!r}."
        )
    for each in value:
        _check_type(key, each)
    if len({repr(each) for each in value}) < len(value):
        raise SettingError(search_key(key), f"{key} lists a value twice; name every value once.")
    return Categorical(tuple(value))


def _parse_range(key: str, value: Mapping[Any, Any]) -> NumberRange:
    integer = int in _types(key)
    if not (integer or float in _types(key)):
        raise SettingError(search_key(key), f"{key} has no range, since it is no number; list its values.")
    if unknown := sorted(set(map(str, value)) - set(_BOUNDS)):
        raise SettingError(search_key(key), f"a range has {', '.join(_BOUNDS)}, not {unknown[0]!r}; take it out.")
    for bound in ("low", "high"):
        if bound not in value:
            raise SettingError(
                search_key(key), f"the range of {key} has no {bound}; write {{low: NUMBER, high: NUMBER}}."
            )
        _check_type(key, value[bound])
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not isinstance(log, bool):
        raise SettingError(search_key(key), f"log of {key} must be true or false, got {log!r}.")
    if not low < high:
        raise SettingError(
            search_key(key), f"the range of {key} is empty: low {low} is not under high {high}; swap them."
        )
    if log and low <= 0:
        raise SettingError(search_key(key), f"{key} cannot be spread over its logarithm from {low}; begin above 0.")
    return NumberRange(low, high, log, integer)


def _check_type(key: str, value: object) -> None:
    try:
        check_type(key, value, _types(key))
    except SettingError as error:
        raise SettingError(search_key(key), str(error)) from None


def _types(key: str) -> tuple[type, ...]:
    """The classes that a recipe allows for a key, beside `None`."""
    hint, _ = settings_of(Recipe)[key]
    return tuple(kind for kind in types_in(hint) if kind is not NoneType)
