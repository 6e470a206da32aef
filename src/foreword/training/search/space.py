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

VARIED = (
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
"""Keys of a recipe that trials may differ in: all of them learn from the same rows and answer the same question."""

Point = dict[str, Any]
"""One value for every key that is varied."""

_BOUNDS = ("low", "high", "log")


@dataclass(frozen=True)
class Categorical:
    """Values to choose from."""

    values: tuple[Any, ...]

    def to_json(self) -> list[Any]:
        return list(self.values)


@dataclass(frozen=True)
class NumberRange:
    """Numbers to choose from, both bounds included.

    Attributes:
        whole: only whole numbers.
        log: evenly over their logarithm.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class SearchSpace:
    """Keys in their order, each with what it may be."""

    domains: Mapping[str, Categorical | NumberRange]

    @classmethod
    def parse(cls, varied: object) -> SearchSpace:
        """Read a ``search:`` mapping. Raises SettingError that names the key as ``search.KEY``."""
        if not isinstance(varied, Mapping) or not varied:
            raise SettingError(
                "search", "--search must be a mapping of keys to lists or ranges, such as 'lr: [1e-3, 5e-3]'."
            )
        return cls({_key(name): _domain(_key(name), value) for name, value in varied.items()})

    @property
    def size(self) -> int | None:
        """How many points there are; ``None`` if there is a range."""
        counts = [len(domain.values) if isinstance(domain, Categorical) else None for domain in self.domains.values()]
        known = [count for count in counts if count is not None]
        return math.prod(known) if len(known) == len(counts) else None

    def corners(self) -> Iterator[Point]:
        """Every point, with the ends of a range in place of all that is between."""
        ends = [d.values if isinstance(d, Categorical) else (d.low, d.high) for d in self.domains.values()]
        for values in product(*ends):
            yield dict(zip(self.domains, values, strict=True))


def where(key: str) -> str:
    """How errors call a key below ``search:``."""
    return f"search.{key}"


def _key(spelled: object) -> str:
    key = str(spelled).replace("-", "_")
    if key not in VARIED:
        near = get_close_matches(key, VARIED, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(VARIED)}."
        raise SettingError(where(key), f"a search cannot vary {key!r}; {mend}")
    return key


def _domain(key: str, value: object) -> Categorical | NumberRange:
    if isinstance(value, Mapping):
        return _range(key, value)
    if not isinstance(value, list | tuple) or not value:
        raise SettingError(
            where(key), f"{key} must be a list of values or a range such as {{low: 1, high: 9}}, got {value!r}."
        )
    for each in value:
        _check_type(key, each)
    if len({repr(each) for each in value}) < len(value):
        raise SettingError(where(key), f"{key} lists a value twice; name every value once.")
    return Categorical(tuple(value))


def _range(key: str, value: Mapping[Any, Any]) -> NumberRange:
    whole = int in _types(key)
    if not (whole or float in _types(key)):
        raise SettingError(where(key), f"{key} has no range, since it is no number; list its values.")
    if unknown := sorted(set(map(str, value)) - set(_BOUNDS)):
        raise SettingError(where(key), f"a range has {', '.join(_BOUNDS)}, not {unknown[0]!r}; take it out.")
    for bound in ("low", "high"):
        if bound not in value:
            raise SettingError(where(key), f"the range of {key} has no {bound}; write {{low: NUMBER, high: NUMBER}}.")
        _check_type(key, value[bound])
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not isinstance(log, bool):
        raise SettingError(where(key), f"log of {key} must be true or false, got {log!r}.")
    if not low < high:
        raise SettingError(where(key), f"the range of {key} is empty: low {low} is not under high {high}; swap them.")
    if log and low <= 0:
        raise SettingError(where(key), f"{key} cannot be spread over its logarithm from {low}; begin above 0.")
    return NumberRange(low, high, log, whole)


def _check_type(key: str, value: object) -> None:
    try:
        check_type(key, value, _types(key))
    except SettingError as error:
        raise SettingError(where(key), str(error)) from None


def _types(key: str) -> tuple[type, ...]:
    """What a recipe has behind a key that is given."""
    hint, _ = settings_of(Recipe)[key]
    return tuple(kind for kind in types_in(hint) if kind is not NoneType)
