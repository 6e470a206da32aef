"""Methods by name, with their options and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

import pytest

from foreword.errors import UsageError
from foreword.prompts.registry import METHODS, get_method
from foreword.training.recipe import Recipe
from foreword.training.setting import settings_of


def test_every_method_is_a_frozen_dataclass_of_its_options():
    for name, made in METHODS.items():
        assert made.name == name
        assert is_dataclass(made)
        assert hash(made) == hash(get_method(name))


def test_an_unknown_method_lists_them_all():
    with pytest.raises(
        UsageError, match=f"unknown method 'p_tuning', did you mean 'p-tuning'; choose {', '.join(METHODS)}"
    ):
        get_method("p_tuning")


@pytest.mark.parametrize(
    ("name", "options", "field", "value"),
    [
        ("lora", {"rank": 4}, "rank", 4),
        ("lora-hybrid", {"rank": 2}, "rank", 2),
        ("p-tuning", {"encoder": "mlp"}, "reparam", "mlp"),
        ("p-tuning-v2", {"projection": True}, "projection", True),
        ("prefix-tuning", {"freeze_first": True}, "freeze_first", True),
    ],
)
def test_options_reach_the_method(name, options, field, value):
    assert getattr(get_method(name, **options), field) == value
    assert get_method(name) == METHODS[name]


def test_an_option_that_a_method_has_not_is_refused_with_those_it_has():
    with pytest.raises(UsageError, match="--method manual has no option --rank; it takes none"):
        get_method("manual", rank=4)
    with pytest.raises(UsageError, match="no option --rank; it takes --projection, --freeze-first"):
        get_method("p-tuning-v2", rank=4)
    with pytest.raises(UsageError, match="no option --reparam; it takes --encoder, --hidden"):
        get_method("p-tuning", reparam="mlp")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"rank": 0}, "--rank must be at least 1, got 0"),
        ("lora-hybrid", {"rank": 0}, "--rank must be at least 1, got 0"),
        ("p-tuning", {"encoder": "gru"}, "--encoder of p-tuning must be lstm or mlp, got 'gru'"),
        ("p-tuning", {"hidden": 0}, "--hidden must be at least 1, got 0"),
        ("prefix-tuning", {"hidden": 0}, "--hidden must be at least 1, got 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        get_method(name, **options)


def test_no_two_options_share_a_flag():
    for made in METHODS.values():
        flags = [field.metadata.get("flag", field.name) for field in fields(made)]
        assert len(set(flags)) == len(flags)


def test_an_mlp_takes_smaller_steps_whatever_the_method_is_called():
    assert (
        get_method("p-tuning-v2", projection=True).lr == get_method("prefix-tuning").lr < get_method("p-tuning-v2").lr
    )


def test_options_of_methods_and_of_recipes_are_the_same():
    """An option that only a recipe or only a method has would be ignored without a word."""
    flags = {field.metadata.get("flag", field.name) for method in METHODS.values() for field in fields(method)}
    python_only = {"alpha", "hidden", "targets"}
    of_recipes = {name for name, (_, setting) in settings_of(Recipe).items() if setting.of_method}
    assert of_recipes == flags - python_only
