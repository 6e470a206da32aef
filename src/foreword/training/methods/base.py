"""`TrainingMethod`, and the `MethodResult` that it gives to `foreword.training.train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.report import Report
from foreword.progress import Say
from foreword.training.loop.run_dir import RunDir
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run


@dataclass(frozen=True)
class MethodResult:
    """A trained task and its metrics.

    Attributes:
        task: ready to publish.
        report: of the task on all evaluation rows.
        trained_parameters: count of trained numbers.
        model: folder of a changed model, which the task belongs to; ``None`` if the model is as it was.
    """

    task: Task
    report: Report
    trained_parameters: int
    model: Path | None = None


class TrainingMethod(Protocol):
    """A module that trains the prompt of a run."""

    def check(self, run: Run) -> None:
        """Raise UsageError and its subclasses for a run that the method cannot train; called before anything is
        written."""
        ...

    def train(
        self, run: Run, engine: EngineProtocol, task: Task, prompt: TrainablePrompt, run_dir: RunDir, say: Say
    ) -> MethodResult:
        """Train the prompt, and evaluate the resulting task.

        Args:
            engine: serves the run's model.
            task: template, verbalizer and defaults, without the prompt's values.
            prompt: at its initial values.
            run_dir: gets checkpoints and history.
            say: gets a line for every stage.
        """
        ...
