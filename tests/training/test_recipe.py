"""Recipes: YAML as people write it, and values that are refused by name."""

from __future__ import annotations

import re

import pytest

from foreword.errors import UsageError
from foreword.training.recipe import Recipe
from foreword.training.recipe_file import RecipeFile


def read(tmp_path, text: str):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return RecipeFile.read(file).values


def test_flags_as_keys(tmp_path):
    found = read(tmp_path, "data: rows.jsonl\nbatch-size: 4\nmax_steps: 10\nlr: 5e-3\nresume: false\n")
    assert found == {"data": "rows.jsonl", "batch_size": 4, "max_steps": 10, "lr": 0.005, "resume": False}
    assert Recipe(**found).lr == 0.005


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2.5e-3", 2.5e-3), ("0.1", 0.1), ("3E2", 300.0), ("1", 1)]
)
def test_learning_rates_are_numbers(text, value, tmp_path):
    assert read(tmp_path, f"lr: {text}\n") == {"lr": value}


def test_labels_are_text_as_spelled(tmp_path):
    """YAML 1.1 would make True of ``yes`` and 1 of ``1``, and no row would have such a label."""
    found = read(
        tmp_path, "data: d.jsonl\nverbalizer:\n  yes: ' good'\n  no: [' bad', ' poor']\n  1: ' one'\n  null: ' x'\n"
    )
    assert list(found["verbalizer"]) == ["yes", "no", "1", "null"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "--lr must be a number, got 'fast'."),
        ({"lr": True}, "--lr must be a number, got True."),
        ({"lr": -1.0}, "--lr must be above 0, got -1.0."),
        ({"lr": float("nan")}, "--lr must be above 0, got nan."),
        ({"lr": float("inf")}, "--lr must be above 0, got inf."),
        ({"length": 3.5}, "--length must be a whole number, got 3.5."),
        ({"length": 0}, "--length must be above 0, got 0."),
        ({"batch_size": 0}, "--batch-size must be above 0, got 0."),
        ({"batch_size": None}, "--batch-size must be a whole number, got None."),
        ({"max_steps": "10"}, "--max-steps must be a whole number, got '10'."),
        ({"seed": -1}, "--seed must be from 0 to 4294967295, got -1."),
        ({"data": ["a"]}, "--data must be text, got ['a']."),
        ({"init_text": 5}, "--init-text must be text, got 5."),
        ({"resume": "yes", "out": "x"}, "--resume must be true or false, got 'yes'."),
        ({"verbalizer": 3}, "--verbalizer must be text or a mapping, got 3."),
        ({"epochs": 1.0, "max_steps": 5}, "--epochs and --max-steps both set the length of the run; give one of them."),
        ({"resume": True}, "--resume needs --out RUN, the run to go on with."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_that_are_refused(values, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Recipe(**{"data": "d.jsonl", **values})


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [
        ({}, 32, 60),
        ({}, 160, 100),
        ({}, 5000, 320),
        ({"max_steps": 7}, 5000, 7),
        ({"epochs": 2}, 100, 13),
        ({"epochs": 0.01}, 10, 1),
        ({"epochs": 3, "batch_size": 64}, 10, 3),
    ],
)
def test_steps(changes, rows, steps):
    assert Recipe(data="d.jsonl", **changes).steps(rows) == steps
