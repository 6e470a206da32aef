"""`Setting`: what one field of a recipe is for and what it may be. The checks, the flag and its help come from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from foreword.errors import SettingError

DATA, METHOD, OPTIMISATION, OUTPUT = GROUPS = ("Data", "Method", "Optimisation", "Output")
"""Headings of settings in ``--help``, in their order."""

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Mapping: "a mapping",
    Sequence: "a list",
    list: "a list",
}

MOST = 2**53
"""No whole number of a setting is larger: a float holds all of them."""


@dataclass(frozen=True)
class Setting:
    """Stands in the annotation of a dataclass field: ``lr: Annotated[float | None, Setting(...)] = None``.

    Attributes:
        help: one sentence for ``--help``.
        default: what ``--help`` shows as the default, where it is not the field's own.
        flag: how the flag is declared to Typer, where it does not follow from the field's name and type.
        above: numbers must be greater than this, and finite.
        low, high: bounds of numbers, both allowed.
        choices: texts that are allowed.
        of_method: it is an option of prompt methods (`foreword.prompts.base.Method`), which has a field for it.
        suggest: values that completion offers, where others are allowed, too.
        group: its heading in ``--help``, one of `GROUPS`; a test wants every setting of a command to name one.
    """

    help: str
    default: str | None = None
    flag: str | None = None
    above: float | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    of_method: bool = False
    suggest: Iterable[str] = ()
    group: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise SettingError for a value of the right type that is out of bounds; ``None`` is the default."""
        if value is None:
            return
        if self.above is not None and not self.above < value < math.inf:
            raise SettingError(name, f"{flag_of(name)} must be above {self.above}, got {value}.")
        if not (self.low is None or self.low <= value) or not (self.high is None or value <= self.high):
            bounds = f"at most {self.high}" if self.low is None else f"at least {self.low}"
            bounds = bounds if self.low is None or self.high is None else f"from {self.low} to {self.high}"
            raise SettingError(name, f"{flag_of(name)} must be {bounds}, got {value}.")
        if self.choices and value not in self.choices:
            listed = " or ".join(self.choices) if len(self.choices) == 2 else f"one of {', '.join(self.choices)}"
            raise SettingError(name, f"{flag_of(name)} must be {listed}, got {value!r}.")


@cache
def settings_of(recipe: type) -> dict[str, tuple[Any, Setting]]:
    """The type and the `Setting` of every field of a dataclass that has one, in the order of the fields."""
    found = {}
    for name, hint in get_type_hints(recipe, include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Setting):
                found[name] = (hint.__origin__, note)
    return found


def check_settings(recipe: Any) -> None:
    """Raise SettingError for the first field of a recipe that has the wrong type, or else is out of bounds."""
    settings = settings_of(type(recipe))
    for name, (hint, _) in settings.items():
        check_type(name, getattr(recipe, name), types_in(hint))
    for name, (_, setting) in settings.items():
        setting.check(name, getattr(recipe, name))


def types_in(hint: Any) -> tuple[type, ...]:
    """The classes that an annotation allows: of ``str | Sequence[str] | None`` they are str, Sequence and NoneType."""
    if get_origin(hint) is Annotated:
        return types_in(get_args(hint)[0])
    if isinstance(hint, UnionType):
        return tuple(kind for each in get_args(hint) for kind in types_in(each))
    return (get_origin(hint) or hint,)


def check_type(name: str, value: object, allowed: tuple[type, ...]) -> None:
    """Raise SettingError unless a value is of one of the classes.

    To Python, true is a whole number and a text is a sequence; here they are neither. A whole number is a number.
    """
    if isinstance(value, int) and abs(value) > MOST:
        raise SettingError(name, f"{flag_of(name)} must be at most {MOST}, got {str(value)[:20]}...")
    if isinstance(value, bool | str | int):
        kind = next(each for each in (bool, str, int) if isinstance(value, each))
        fits = kind in allowed or (kind is int and float in allowed)
    else:
        fits = isinstance(value, allowed)
    if not fits:
        expected = " or ".join(_WORDS[each] for each in allowed if each in _WORDS)
        raise SettingError(name, f"{flag_of(name)} must be {expected}, got {value!r}.")


def flag_of(name: str) -> str:
    """The flag of a field: ``--batch-size`` of ``batch_size``."""
    return f"--{name.replace('_', '-')}"
