"""`MethodResult`: what a way of learning gives to `foreword.training.train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foreword.core import Task
from foreword.evaluation.report import Report

Say = Callable[[str], None]


@dataclass(frozen=True)
class MethodResult:
    """What was learned.

    Attributes:
        task: ready to publish.
        report: of the task on all evaluation rows.
        parameters: how many numbers were learned.
        model: folder of a changed model, which the task belongs to; ``None`` if the model is as it was.
    """

    task: Task
    report: Report
    parameters: int
    model: Path | None = None
