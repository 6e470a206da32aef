"""The same judgement for all: a task through the engine, on the rows of dev and test."""

from __future__ import annotations

from typing import Any

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel
from foreword.text.rows import read_rows

CACHE_BYTES = 256 << 20


def judged(lm: LanguageModel, task: Task, recipe: dict[str, Any], test: str, metric: str) -> dict[str, Any]:
    """Figures of a task.

    Args:
        lm: as it is now, with whatever was learned in its weights.
        task: what is asked.
        recipe: names the dev rows and the field of the labels.
        test: file of the test rows.
        metric: the figure to compare by.

    Returns:
        ``dev`` and ``test`` (the metric), all figures on test, and its rows.
    """
    with Engine(lm, cache_bytes=CACHE_BYTES) as engine:
        dev, final = (
            evaluate(engine, task, read_rows(file), label_field=recipe["label_field"])
            for file in (recipe["eval"], test)
        )
    return {"dev": dev.metrics[metric], "test": final.metrics[metric], "n": final.n, "metrics": final.metrics}


def size(lm: LanguageModel) -> int:
    """Parameters of the base model."""
    return sum(parameter.numel() for parameter in lm.model.parameters())
