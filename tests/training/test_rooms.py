"""The way through a training run goes in one direction: every room knows only those before it."""

from __future__ import annotations

from pathlib import Path

import pytest

import foreword.training
from test_structure import imports

TRAINING = Path(foreword.training.__file__).parent
ORDER = (
    "setting",
    "recipe",
    "recipe_file",
    "data",
    "modules",
    "compatibility",
    "initialization",
    "run",
    "loop",
    "methods",
    "train",
    "distillation",
    "many",
    "search",
)


def room(name: str) -> int:
    return ORDER.index(name)


@pytest.mark.parametrize("file", sorted(TRAINING.rglob("*.py")), ids=lambda file: str(file.relative_to(TRAINING)))
def test_rooms_know_only_those_before_them(file):
    if file == TRAINING / "__init__.py":
        return
    here = room(file.relative_to(TRAINING).parts[0].removesuffix(".py"))
    for name in imports(file):
        if name.startswith("training."):
            assert room(name.split(".")[1]) <= here, f"{file.relative_to(TRAINING)} may not use {name}"
