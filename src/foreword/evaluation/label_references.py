"""What the rows of a task that labels whole texts should give, and the `Report` of its scores against that.

One class for each problem type: one label a row, several labels a row, or a number. `references` chooses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foreword.core import Task
from foreword.evaluation.metrics import label_metrics, label_set_metrics, regression_metrics
from foreword.evaluation.predict import by_label, chosen_labels, label_probs
from foreword.evaluation.report import Prediction, Report
from foreword.evaluation.row_labels import label_index, row_label, row_label_set, row_number
from foreword.text.rows import Row


class LabelReferences(Protocol):
    """References of rows, in their order."""

    def report(self, task: Task, scores: np.ndarray) -> Report:
        """Metrics and predictions from the task's scores ``[rows, labels]``, those of an ensemble's members stacked."""
        ...


def references(task: Task, rows: Sequence[Row], label_field: str) -> LabelReferences:
    """The references of rows for a task. Raises DataError or VerbalizerError that names the row."""
    problem_type = task.head.problem_type if task.head is not None else "single_label_classification"
    if problem_type == "regression":
        return Numbers(tuple(row_number(row, label_field) for row in rows))
    if problem_type == "multi_label_classification":
        sets = [row_label_set(row, label_field) for row in rows]
        for labels, row in zip(sets, rows, strict=True):
            for label in labels:
                label_index(task.labels, label, row)
        return LabelSets(tuple(tuple(each for each in task.labels if each in labels) for labels in sets))
    labels = tuple(row_label(row, label_field) for row in rows)
    return SingleLabels(
        labels, tuple(label_index(task.labels, label, row) for label, row in zip(labels, rows, strict=True))
    )


@dataclass(frozen=True)
class SingleLabels:
    """One label a row.

    Attributes:
        labels: of every row.
        indices: of these among the task's labels.
    """

    labels: tuple[str, ...]
    indices: tuple[int, ...]

    def report(self, task: Task, scores: np.ndarray) -> Report:
        probs = label_probs(task, scores)
        nll = negative_log_likelihood(probs, self.indices)
        predicted = [task.labels[index] for index in probs.argmax(-1).tolist()]
        metrics = label_metrics(predicted, self.labels, probs.max(-1).tolist())
        predictions = [
            Prediction(label, guess, by_label(task, row), nll=loss)
            for label, guess, row, loss in zip(self.labels, predicted, probs.tolist(), nll.tolist(), strict=True)
        ]
        return Report(len(predictions), metrics, predictions)


@dataclass(frozen=True)
class LabelSets:
    """Any number of labels a row.

    Attributes:
        sets: the labels of every row, in the order of the task's.
    """

    sets: tuple[tuple[str, ...], ...]

    def report(self, task: Task, scores: np.ndarray) -> Report:
        probs = label_probs(task, scores)
        wanted = np.array([[label in labels for label in task.labels] for labels in self.sets])
        right = np.where(wanted, probs, 1 - probs)
        nll = -np.log(np.where(right < 1e-12, 1e-12, right)).mean(-1)  # NaN stays NaN
        rows = [by_label(task, row) for row in probs.tolist()]
        predicted = [chosen_labels(row) for row in rows]
        predictions = [
            Prediction(labels, guess, row, nll=loss)
            for labels, guess, row, loss in zip(self.sets, predicted, rows, nll.tolist(), strict=True)
        ]
        return Report(len(predictions), label_set_metrics(predicted, self.sets, task.labels), predictions)


@dataclass(frozen=True)
class Numbers:
    """A number a row."""

    values: tuple[float, ...]

    def report(self, task: Task, scores: np.ndarray) -> Report:
        predicted = label_probs(task, scores)[:, 0].astype(float).tolist()
        predictions = [
            Prediction(value, guess, nll=(guess - value) ** 2)
            for value, guess in zip(self.values, predicted, strict=True)
        ]
        return Report(len(predictions), regression_metrics(predicted, self.values), predictions)


def negative_log_likelihood(probs: np.ndarray, expected: Sequence[int]) -> np.ndarray:
    """``[places]`` of the expected labels, natural logarithms; NaN stays NaN."""
    chances = probs[np.arange(len(expected)), np.array(expected, dtype=np.int64)]
    return -np.log(np.where(chances < 1e-12, 1e-12, chances))
