"""Options that come from the fields of dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from foreword.cli.app import app
from foreword.cli.flags import FlagsOf, expand_options
from foreword.cli.recipes import SINGLE
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.many.config import MultiTaskConfig
from foreword.training.recipe import Recipe
from foreword.training.setting import Setting, settings_of


@dataclass(frozen=True)
class Place:
    town: Annotated[str, typer.Option("--town", help="Where it is.")] = "Ulm"
    far: Annotated[bool, typer.Option("--far", help="Whether it is far.")] = False


@dataclass(frozen=True)
class Bake:
    flour: Annotated[str | Mapping[str, Any], Setting("Of what.")]
    seeds: Annotated[Sequence[str] | None, Setting("On top.", default="none")] = None
    salt: Annotated[bool | None, Setting("Salt.", flag="--salt/--bland")] = None
    steam: Annotated[bool, Setting("Steam.")] = False
    loaves: Annotated[int, Setting("How many.")] = 1
    secret: str = ""


def called(*words: str) -> tuple[Any, ...]:
    """What a command is called with that takes both, and has an option for one of the fields itself."""
    kept: list[Any] = []
    program = typer.Typer()

    @program.command()
    @expand_options
    def bake(
        name: str,
        loaves: Annotated[int, typer.Option(help="More than usual.")] = 7,
        *,
        settings: Annotated[dict[str, Any], FlagsOf(Bake, without=["steam"])],
        place: Place,
    ) -> None:
        kept.append((name, loaves, settings, place))

    result = CliRunner().invoke(program, words)
    assert result.exit_code == 0, result.output
    return kept[0] if kept else (result.output,)


def test_a_command_gets_what_was_typed():
    name, loaves, settings, place = called("x", "--flour", "rye", "--seeds", "a", "--seeds", "b", "--bland", "--far")
    assert (name, loaves, place) == ("x", 7, Place("Ulm", True))
    assert settings == {"flour": "rye", "seeds": ["a", "b"], "salt": False}


def test_defaults_are_those_of_the_fields():
    assert called("x") == ("x", 7, {"flour": None, "seeds": None, "salt": None}, Place())


def test_options_stand_where_their_parameter_does():
    (help_,) = called("--help")
    found = [help_.index(word) for word in ("--loaves", "--flour", "--seeds", "--salt", "--bland", "--town", "--far")]
    assert found == sorted(found)
    assert "--steam" not in help_
    assert "--secret" not in help_


@pytest.mark.parametrize(
    ("command", "recipe", "without"),
    [
        ("train", Recipe, ()),
        ("train-many", Recipe, SINGLE),
        ("train-many", MultiTaskConfig, ()),
        ("search", Recipe, SINGLE),
        ("distill", DistilRecipe, ()),
    ],
)
def test_hyper_parameters_are_flags_with_the_same_default(command, recipe, without):
    options = {each.name: each for each in typer.main.get_command(app).commands[command].params}
    for name in settings_of(recipe):
        assert (name in options) == (name not in without)
        if name not in without:
            usual = options[name].default
            assert (None if usual == () else usual) == getattr(recipe, name, None), name
