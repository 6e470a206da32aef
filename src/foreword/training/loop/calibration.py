"""Calibration: what a task says when it is given nothing (Zhao et al. 2021, arXiv:2102.09690)."""

from __future__ import annotations

import math
from dataclasses import replace

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.predict import classify
from foreword.text.template import Template

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts without content, as in the paper; the mean of what is said to them is the bias."""


def calibrated(engine: EngineProtocol, task: Task) -> Task:
    """``task`` with the log-probability that every label has without any content as its bias."""
    plain = replace(task, bias=None)
    template = Template.parse(task.template or "")
    rows = [dict.fromkeys(template.fields, text) for text in CONTENT_FREE]
    # A template that is nothing but its fields has nothing to ask without any text.
    asked = [row for row in rows if template.fill(row, answer=False).prompt]
    said = classify(engine, plain, asked)
    means = {label: sum(row[label] for row in said) / len(said) for label in task.labels}
    return replace(task, bias={label: math.log(max(mean, 1e-12)) for label, mean in means.items()})
