"""The training method of every prompt method."""

from __future__ import annotations

from foreword.training.methods import gradient_descent
from foreword.training.methods.autoprompt import autoprompt
from foreword.training.methods.base import TrainingMethod
from foreword.training.methods.pet import pet

TRAINING_METHODS: dict[str, TrainingMethod] = {"pet": pet, "autoprompt": autoprompt}
"""By the name of the prompt method; all others are trained by `gradient_descent`."""


def training_method(name: str) -> TrainingMethod:
    """The training method of a prompt method."""
    return TRAINING_METHODS.get(name, gradient_descent)
