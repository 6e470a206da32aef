"""Foreword: `train` from its recipe, as the command line would."""

from __future__ import annotations

import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.quality.scoring import evaluated, model_size
from foreword.models import load_model
from foreword.training.recipe import Recipe
from foreword.training.train import train


def figures(settings: Mapping[str, Any]) -> dict[str, Any]:
    lm = load_model(settings["model"], device="cpu")
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        outcome = train(lm, Recipe(**settings["recipe"], out=folder), name="bench")
    seconds = time.perf_counter() - began
    return {
        **evaluated(lm, outcome.task, settings, outcome.metrics),
        "trained_parameters": outcome.trained_parameters,
        "model_parameters": model_size(lm),
        "task_bytes": outcome.task.nbytes,
        "seconds": seconds,
    }
