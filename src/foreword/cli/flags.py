"""Options of commands from the fields of dataclasses, such as recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import wraps
from types import NoneType
from typing import Annotated, Any, get_type_hints

import typer

from foreword.cli.completion import complete_init, complete_values
from foreword.training.setting import Setting, flag_of, settings_of, types_in

Command = Callable[..., None]


@dataclass(frozen=True)
class FlagsOf:
    """Marks a parameter, in its annotation, that gets a dict of the values of a recipe's fields, each an option.

    Attributes:
        recipe: a dataclass; fields that have a `Setting` become options.
        without: fields that do not.
    """

    recipe: type
    without: Collection[str] = ()


def expand_options(command: Command) -> Command:
    """Let Typer see an option for every field, in place of a parameter that stands for several.

    A parameter that is annotated with a dataclass gets an instance, one with `FlagsOf` a dict. A field with the name of
    another parameter of the command is not repeated.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    options: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for name, parameter in own.items():
        fields, make = _fields(hints[name])
        if make is None:
            fields = {name: (hints[name], parameter.default)}
        else:
            fields = {field: option for field, option in fields.items() if field not in own}
            groups[name] = (make, list(fields))
        for field, (hint, default) in fields.items():
            kind = inspect.Parameter.KEYWORD_ONLY
            options[field] = inspect.Parameter(field, kind, default=default, annotation=hint)

    @wraps(command)
    def run(**values: Any) -> None:
        for name, (make, fields) in groups.items():
            values[name] = make(**{field: values.pop(field) for field in fields})
        command(**values)

    # What Typer reads.
    run.__dict__["__signature__"] = inspect.Signature(list(options.values()))
    run.__annotations__ = {name: option.annotation for name, option in options.items()}
    return run


def join_words(args: Sequence[str]) -> list[str]:
    """The arguments with ``--long-rows cut FIELD``, the one flag of two words, made one of one word."""
    joined: list[str] = []
    for word in args:
        if joined[-2:] == ["--long-rows", "cut"] and not word.startswith("-"):
            joined[-1] = f"cut {word}"
        else:
            joined.append(word)
    return joined


def parameter_types(command: Command) -> Mapping[str, tuple[type, ...]]:
    """The classes of values that each parameter of a command takes."""
    parameters = inspect.signature(command).parameters
    return {name: types_in(parameter.annotation) for name, parameter in parameters.items()}


def _fields(hint: Any) -> tuple[dict[str, tuple[Any, Any]], Callable[..., Any] | None]:
    """The annotation and the default of each option that a parameter stands for, and what makes one value of theirs;
    nothing for a parameter that is an option itself."""
    group: FlagsOf | None = next(
        (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, FlagsOf)), None
    )
    make: Callable[..., Any] = dict
    if group is None:
        if not (isinstance(hint, type) and is_dataclass(hint)):
            return {}, None
        group, make = FlagsOf(hint), hint
    if settings := settings_of(group.recipe):
        options = {name: _option(name, *setting) for name, setting in settings.items() if name not in group.without}
    else:
        options = get_type_hints(group.recipe, include_extras=True)
    # A field without a default need not be on the command line; a recipe file may have it.
    return {name: (option, getattr(group.recipe, name, None)) for name, option in options.items()}, make


def _option(name: str, hint: Any, setting: Setting) -> Any:
    """The annotation that Typer reads. A mapping is given as text, a list by giving the flag several times."""
    kinds = types_in(hint)
    kind: Any = list[str] if Sequence in kinds else kinds[0]
    # A switch that is off unless it is given needs no --no-NAME.
    declaration = setting.flag or (flag_of(name) if kinds == (bool,) else None)
    values = setting.choices or setting.suggest
    complete = complete_init if name == "init" and not setting.choices else complete_values(values) if values else None
    option = typer.Option(
        *filter(None, [declaration]),
        help=setting.help,
        show_default=setting.default or True,
        rich_help_panel=setting.group or None,
        autocompletion=complete,
    )
    return Annotated[kind | None if NoneType in kinds else kind, option]
