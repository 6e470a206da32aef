"""Writes the help of every command into `docs/cli.md`, between its markers: ``python docs/write_cli_help.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from foreword.cli.app import app

PAGE = Path(__file__).with_name("cli.md")
BEGIN = f"<!-- written by docs/write_cli_help.py with Typer {typer.__version__} -->"
END = "<!-- end of what docs/write_cli_help.py writes -->"
# Neither the terminal nor the environment may show in the page.
PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "FOREWORD_MODEL": None, "FOREWORD_BANK": None, "FOREWORD_API_KEYS": None}


def commands(command: Any, words: tuple[str, ...] = ("foreword",)) -> Iterator[tuple[str, ...]]:
    """The words of the program itself, and of every command and group below it."""
    yield words
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*words, name))


def help_of(words: tuple[str, ...]) -> str:
    """What ``foreword WORDS --help`` prints, 80 columns wide and without colours."""
    result = CliRunner().invoke(app, [*words[1:], "--help"], prog_name="foreword", env=PLAIN)
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def section() -> str:
    """The page between its markers, with them: a heading and a block of text for every command."""
    found = commands(typer.main.get_command(app))
    blocks = [f"## {' '.join(words)}\n\n```\n{help_of(words)}\n```" for words in found]
    return "\n\n".join([BEGIN, *blocks, END])


def with_section(page: str) -> str:
    """The page with a new section. Raises ValueError for one without markers."""
    before, _, rest = page.partition("<!-- written by docs/write_cli_help.py")
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE.name} has no markers; write '{BEGIN}' and '{END}' into it.")
    return f"{before}{section()}{after}"


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
