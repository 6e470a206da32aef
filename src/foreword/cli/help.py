"""``--help``: options under headings, the example last, and lines that are wrapped between words at any width."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand

from foreword.cli.flags import join_words
from foreword.cli.interruption import InterruptibleGroup
from foreword.training.setting import GROUPS

ARGUMENTS, OWN, HELP = "Arguments", "Options", "Help"
# Columns of a page at most, and those of the left column of a list.
MAX_WIDTH, LEFT_WIDTH = 80, 30
# Below so many columns, what an option is for stands under it, not beside it.
NARROW = 60
_SHELL_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\S)+""")


class Application(typer.Typer):
    """A Typer application whose commands and groups, and those below them, print this help."""

    def __init__(self, help: str, **settings: Any) -> None:  # noqa: A002 - Typer's name
        settings.setdefault("cls", HelpGroup)
        super().__init__(help=help, no_args_is_help=True, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        settings.setdefault("cls", HelpCommand)
        return super().command(name, **settings)


class HelpCommand(TyperCommand):
    """A command whose docstring ends in ``Example: COMMAND; COMMAND``, which becomes its epilog."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **_with_epilog(settings))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_words(args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_page(self, ctx, ())))


class HelpGroup(InterruptibleGroup):
    """A group of commands, likewise."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_with_epilog(settings))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = [(name, each) for name, each in self.commands.items() if not each.hidden]
        rows = [(name, cleandoc(each.help or "").partition("\n\n")[0].replace("\n", " ")) for name, each in shown]
        formatter.write("\n".join(_page(self, ctx, rows)))


def _with_epilog(settings: dict[str, Any]) -> dict[str, Any]:
    text, *example = re.split(r"^Examples?: ", cleandoc(settings.get("help") or ""), maxsplit=1, flags=re.MULTILINE)
    return {**settings, "help": text.rstrip(), "epilog": " ".join("".join(example).split()) or None}


def _page(command: Any, ctx: Any, commands: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The lines of a help page.

    Args:
        commands: names of the commands of a group, and what they are for.
    """
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH) - 1
    yield from _wrap(f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}", width, "", " " * 7)
    for paragraph in filter(None, cleandoc(command.help or "").split("\n\n")):
        yield ""
        yield from _wrap(paragraph, width, "  ")
    for heading, rows in _panels(command, ctx).items():
        yield from ("", f"{heading}:")
        yield from _rows(rows, width)
    if commands:
        yield from ("", "Commands:")
        yield from _rows(commands, width)
    if command.epilog:
        yield from ("", "Example:")
        for line in command.epilog.split("; "):
            yield from _shell_lines(line, width)


def _panels(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Rows of arguments and options by heading: those without one, those of settings in their order, the rest."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        row = parameter.get_help_record(ctx)
        if row is not None:
            usual = ARGUMENTS if parameter.param_type_name == "argument" else HELP if parameter.name == "help" else OWN
            found.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(row)
    rank = {heading: index for index, heading in enumerate((ARGUMENTS, OWN, *GROUPS))}
    order = sorted(found, key=lambda heading: (heading == HELP, rank.get(heading, len(rank))))
    return {heading: found[heading] for heading in order}


def _rows(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """A list of two columns; in a narrow terminal the second stands below the first."""
    rows = list(rows)
    left = min(max(len(name) for name, _ in rows), LEFT_WIDTH) + 4
    for name, text in rows:
        beside = width >= NARROW and len(name) <= left - 4
        if not beside:
            yield f"  {name}"
        indent = " " * (left if width >= NARROW else 6)
        yield from _wrap(text, width, f"  {name}".ljust(left) if beside else indent, indent)


def _wrap(text: str, width: int, first: str, rest: str | None = None) -> list[str]:
    """Lines that are broken between words only."""
    return textwrap.wrap(
        " ".join(text.split()),
        max(width, 20),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shell_lines(command: str, width: int) -> Iterator[str]:
    """A command line that can be pasted: continued with a backslash, and only between its words."""
    line = " "
    for word in _SHELL_WORD.findall(command):
        if line.strip() and len(line) + 1 + len(word) > width - 2:
            yield f"{line} \\"
            line = "   "
        line = f"{line} {word}"
    yield line
