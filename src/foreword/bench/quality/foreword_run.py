"""Foreword: `train` from its recipe, as the command line would."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from typing import Any

from foreword.bench.quality.judge import judged, size
from foreword.models import load_model
from foreword.training.recipe import Recipe
from foreword.training.train import train


def start(settings: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    return {"figures": lambda: _figures(settings)}


def _figures(settings: Mapping[str, Any]) -> dict[str, Any]:
    lm = load_model(settings["model"], device="cpu")
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        outcome = train(lm, Recipe(**settings["recipe"], out=folder), name="bench")
    seconds = time.perf_counter() - began
    return {
        **judged(lm, outcome.task, settings, outcome.metrics),
        "trained_parameters": outcome.trained_parameters,
        "model_parameters": size(lm),
        "task_bytes": outcome.task.nbytes,
        "seconds": seconds,
    }
