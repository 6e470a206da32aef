"""Fields that say what they are for and what they may be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any

import pytest

from foreword.errors import SettingError
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.recipe import Recipe
from foreword.training.setting import Setting, check_settings, settings_of, types_in


@dataclass(frozen=True)
class Oven:
    bread: Annotated[str, Setting("What is baked.", choices=("rye", "spelt", "wheat"))] = "rye"
    degrees: Annotated[float, Setting("Of the oven.", above=0)] = 230.0
    loaves: Annotated[int | None, Setting("At once.", default="as many as fit", low=1, high=6)] = None
    racks: Annotated[int, Setting("That are in use.", low=2)] = 2
    steam: Annotated[bool, Setting("At the beginning.")] = False
    seeds: Annotated[Sequence[str] | None, Setting("On top.")] = None
    notes: str | Mapping[str, Any] = ""

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize("recipe", [Recipe, DistilRecipe])
def test_every_field_of_a_recipe_says_what_it_is_for(recipe):
    settings = settings_of(recipe)
    assert list(settings) == [field.name for field in fields(recipe)]
    assert all(setting.help.endswith((".", "}")) for _, setting in settings.values())


def test_fields_without_a_setting_are_left_alone():
    assert list(settings_of(Oven)) == ["bread", "degrees", "loaves", "racks", "steam", "seeds"]


def test_types_of_an_annotation():
    assert types_in(str) == (str,)
    assert types_in(Annotated[Sequence[str] | Mapping[str, Any] | None, "x"]) == (Sequence, Mapping, NoneType)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bread": "corn"}, "--bread must be one of rye, spelt, wheat, got 'corn'."),
        ({"bread": 1}, "--bread must be text, got 1."),
        ({"degrees": 0}, "--degrees must be above 0, got 0."),
        ({"degrees": math.nan}, "--degrees must be above 0, got nan."),
        ({"degrees": math.inf}, "--degrees must be above 0, got inf."),
        ({"degrees": True}, "--degrees must be a number, got True."),
        ({"loaves": 7}, "--loaves must be from 1 to 6, got 7."),
        ({"loaves": 0}, "--loaves must be from 1 to 6, got 0."),
        ({"loaves": 2.0}, "--loaves must be a whole number, got 2.0."),
        ({"racks": 1}, "--racks must be at least 2, got 1."),
        ({"racks": None}, "--racks must be a whole number, got None."),
        ({"steam": 1}, "--steam must be true or false, got 1."),
        ({"seeds": "poppy"}, "--seeds must be a list, got 'poppy'."),
    ],
)
def test_values_that_are_refused(values, sentence):
    with pytest.raises(SettingError, match=f"^{re.escape(sentence)}$") as caught:
        Oven(**values)
    assert caught.value.key == next(iter(values))


def test_values_that_are_taken():
    Oven(bread="spelt", degrees=200, loaves=6, racks=9, steam=True, seeds=("poppy",))
    Oven(seeds=["poppy"], loaves=None)
