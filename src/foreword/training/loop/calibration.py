"""Contextual calibration: a bias from the label probabilities of content-free input (Zhao et al. 2021,
arXiv:2102.09690)."""

from __future__ import annotations

import math
from dataclasses import replace

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.predict import classify
from foreword.text.template import Template

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Content-free input, as in the paper; the mean of its label probabilities is the bias."""


def calibrated(engine: EngineProtocol, task: Task) -> Task:
    """``task`` with the log of every label's mean probability after content-free input as its bias."""
    plain = replace(task, bias=None)
    template = Template.parse(task.template or "")
    rows = [dict.fromkeys(template.fields, text) for text in CONTENT_FREE]
    # Of a template that is nothing but its fields, the empty text leaves an empty prompt.
    prompts = [row for row in rows if template.fill(row, answer=False).prompt]
    probabilities = classify(engine, plain, prompts)
    means = {label: sum(row[label] for row in probabilities) / len(probabilities) for label in task.labels}
    return replace(task, bias={label: math.log(max(mean, 1e-12)) for label, mean in means.items()})
