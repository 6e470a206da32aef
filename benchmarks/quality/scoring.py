"""A task evaluated through the engine on the rows of dev and test, the same for all approaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel
from foreword.text.rows import read_rows
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES


def _figures(lm: LanguageModel, task: Task, file: str, field: str) -> tuple[int, dict[str, float]]:
    """How many rows a file has, and all figures of a task on them.

    Args:
        lm: as it is now, with whatever was learned in its weights.
        task: what is asked.
        file: of the rows.
        field: of their labels.
    """
    with Engine(lm, cache_bytes=EVAL_CACHE_BYTES) as engine:
        report = evaluate(engine, task, read_rows(file), label_field=field)
    return report.n, report.metrics


def evaluated(
    lm: LanguageModel, task: Task, settings: Mapping[str, Any], dev: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The figure to compare by on ``dev`` and ``test``, and all figures on test.

    Args:
        settings: of the participant.
        dev: figures on dev, if they are known already.
    """
    field, metric = settings["recipe"]["label_field"], settings["metric"]
    if dev is None:
        _, dev = _figures(lm, task, settings["recipe"]["eval"], field)
    n, test = _figures(lm, task, settings["test"], field)
    # A perplexity may be infinite, which JSON does not know.
    metrics = {name: value if math.isfinite(value) else None for name, value in test.items()}
    return {"dev": dev[metric], "test": test[metric], "n": n, "metrics": metrics}


def model_size(lm: LanguageModel) -> int:
    """Parameters of the base model."""
    return sum(parameter.numel() for parameter in lm.model.parameters())
