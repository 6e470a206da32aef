"""Every command's help: quick, with an example, and the examples are commands that there are."""

from __future__ import annotations

import importlib.util
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from foreword.cli.app import app
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.many.config import MultiTaskConfig
from foreword.training.recipe import Recipe
from foreword.training.setting import GROUPS, settings_of

DOCS = Path(__file__).parents[2] / "docs"
# Seconds of processor time.
BUDGET = 0.3


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that lead to it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, each in below.items():
        yield from commands(each, (*path, name))


ROOT = typer.main.get_command(app)
ALL = dict(commands(ROOT))


def examples(command: Any) -> list[list[str]]:
    """The words behind ``foreword`` of the command lines that a help text ends in, up to a redirection."""
    return [shlex.split(line.partition(" > ")[0])[1:] for line in command.epilog.split("; ")]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_an_example(path, run):
    shown = run(*path, "--help")
    assert shown.status == 0
    assert f"Usage: foreword {' '.join(path)}" in shown.out
    headings = [line for line in shown.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[-1] == "Example:"
    assert f"foreword {' '.join(path)}" in shown.out.partition("Example:")[2]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_examples_are_commands_that_there_are(path):
    for words in examples(ALL[path]):
        assert tuple(words[: len(path)]) == path
        context = ROOT.make_context("foreword", list(words))
        ALL[path].make_context(path[-1], list(words[len(path) :]), parent=context)


def test_groups_have_an_example_of_a_command_in_them():
    for path in [(), *{path[:-1] for path in ALL if len(path) > 1}]:
        group = ROOT
        for word in path:
            group = group.commands[word]
        for words in examples(group):
            assert tuple(words[: len(path)]) == path
            assert ALL[tuple(words[: len(path) + 1])]


@pytest.mark.parametrize("command", ["train", "train-many", "search", "distill"])
def test_hyper_parameters_stand_under_headings(command, run):
    shown = run(command, "--help").out
    headings = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert [each for each in headings if each in GROUPS] == list(GROUPS)
    for recipe in (Recipe, MultiTaskConfig, DistilRecipe):
        for name, (_, setting) in settings_of(recipe).items():
            assert setting.group in GROUPS, f"name the group of {recipe.__name__}.{name}"


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("path", [("train",), ("generate",), ("bank",), ()], ids=" ".join)
def test_help_breaks_lines_between_words_only(path, width, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    whole = " ".join(run(*path, "--help").out.split())
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run(*path, "--help").out
    assert " ".join(shown.replace("\\\n", "\n").split()) == whole.replace("\\ ", "")
    assert max(len(line) for line in shown.splitlines() if " " in line.strip(" \\")) <= width


def test_every_option_says_what_it_is_for():
    for path, command in ALL.items():
        for parameter in command.params:
            assert parameter.help, f"foreword {' '.join(path)}: {parameter.name}"


def test_what_changes_or_measures_speaks_json():
    """All but what only talks (a conversation, a server), and sample data, which are what they are."""
    silent = {path for path, command in ALL.items() if "json" not in {each.name for each in command.params}}
    assert silent == {("chat",), ("sample",), ("serve",)}


def test_help_is_quick():
    """The best of three, since other work on the machine only ever makes it slower."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "foreword", "--help"], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= BUDGET, times


def script() -> ModuleType:
    """``docs/write_cli_help.py``."""
    spec = importlib.util.spec_from_file_location("write_cli_help", DOCS / "write_cli_help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_help_of_every_command(monkeypatch):
    for name, value in (("COLUMNS", "200"), ("FORCE_COLOR", "1"), ("FOREWORD_MODEL", "elsewhere")):
        monkeypatch.setenv(name, value)
    written = script()
    page = written.PAGE.read_text(encoding="utf-8")
    for path in ALL:
        assert f"\n## foreword {' '.join(path)}\n" in page
    if written.BEGIN not in page:
        pytest.skip(
            f"docs/cli.md was written with another Typer than {typer.__version__}, which wraps lines its own way"
        )
    assert page == written.with_section(page), "a flag has changed; run make docs"
