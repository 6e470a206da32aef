"""`Prediction` and `Report`: the result of an evaluation, as objects, JSON and text tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foreword.core.overview import Overview, WithOverview
from foreword.errors import UsageError
from foreword.evaluation.class_scores import ClassScores
from foreword.evaluation.confusion import ConfusionMatrix
from foreword.evaluation.metrics import label_set_scores
from foreword.evaluation.spans import is_iob2, span_scores
from foreword.evaluation.table import table

_MAX_MATRIX_LABELS = 20
"""With more labels, the text report lists mistakes in place of the confusion matrix."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one row.

    Attributes:
        expected: a label, all labels of a text that may have several, a number, the tags of its words, or the
            reference text (the first one if there are several).
        predicted: likewise; texts are without surrounding white space.
        probs: probability of every label; None for numbers, tags and generated text.
        references: all reference texts; one or more for generated text, none otherwise.
        nll: negative log-likelihood of the expected label, the mean over a row's words or over all labels; of a number
            the squared error; None for generated text.
    """

    expected: str | float | tuple[str, ...]
    predicted: str | float | tuple[str, ...]
    probs: dict[str, float] | None = None
    references: tuple[str, ...] = ()
    nll: float | None = None

    def to_json(self) -> dict[str, Any]:
        """``expected`` (a list of all references if there are several), ``predicted`` and ``probs``."""
        expected = self.references if len(self.references) > 1 else self.expected
        return {"expected": expected, "predicted": self.predicted, "probs": self.probs}


@dataclass(frozen=True, repr=False)
class Report(WithOverview):
    """Metrics and predictions of one task on some rows.

    Attributes:
        n: number of rows.
        metrics: over all rows, by name.
        predictions: in the order of the rows.
        unavailable_metrics: left out because the `[eval]` extra is not installed.
    """

    n: int
    metrics: dict[str, float]
    predictions: list[Prediction]
    unavailable_metrics: tuple[str, ...] = ()

    def overview(self) -> Overview:
        """Every metric, a line each."""
        metrics = {name: _format(value) for name, value in self.metrics.items()}
        return Overview(f"Report on {self.n} rows", {**metrics, "not measured": ", ".join(self.unavailable_metrics)})

    @property
    def loss(self) -> float | None:
        """Negative log-likelihood of the references: the mean over rows for labels, over tokens for generated text; the
        mean squared error of numbers.

        None for generated text that has no tokens to measure.
        """
        if self.predictions[0].references:
            perplexity = self.metrics.get("perplexity")
            return math.log(perplexity) if perplexity else None
        return sum(prediction.nll or 0.0 for prediction in self.predictions) / self.n

    def confusion(self) -> ConfusionMatrix:
        """Confusion matrix of the labels, or of the tags of all words. Raises UsageError for others."""
        if self.has_label_sets:
            raise UsageError("texts that may have several labels have no confusion matrix; see each label's scores.")
        expected, predicted = self._tags()
        if not self._tagged:
            return ConfusionMatrix.from_predictions(
                predicted[0], expected[0], labels=tuple(self.predictions[0].probs or ())
            )
        return ConfusionMatrix.from_predictions(
            [tag for row in predicted for tag in row], [tag for row in expected for tag in row]
        )

    def per_class(self) -> dict[str, ClassScores]:
        """Scores of every label; for IOB2 tags of every kind of span. Raises UsageError for texts and numbers."""
        expected, predicted = self._tags()
        if self.has_label_sets:
            return label_set_scores(predicted, expected, tuple(self.predictions[0].probs or ()))
        if self._tagged and is_iob2([tag for row in (*expected, *predicted) for tag in row]):
            return span_scores(predicted, expected)
        return self.confusion().per_class()

    def classes_to_json(self) -> dict[str, Any]:
        """``per_class``, and ``confusion`` unless a text may have several labels. Raises UsageError without classes."""
        per_class = {label: asdict(scores) for label, scores in self.per_class().items()}
        if self.has_label_sets:
            return {"per_class": per_class}
        confusion = self.confusion()
        return {"per_class": per_class, "confusion": {"labels": confusion.labels, "counts": confusion.counts}}

    @property
    def has_label_sets(self) -> bool:
        """Whether a text may have several labels."""
        return self._tagged and self.predictions[0].probs is not None

    @property
    def _tagged(self) -> bool:
        return isinstance(self.predictions[0].predicted, tuple)

    def _tags(self) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
        """Expected and predicted tags, row by row; the labels of whole texts are one row."""
        if self.predictions[0].references:
            raise UsageError("a task that generates text has no classes; leave out --per-class.")
        if isinstance(self.predictions[0].predicted, float):
            raise UsageError("a task that answers numbers has no classes; leave out --per-class.")
        expected = [each.expected for each in self.predictions]
        predicted = [each.predicted for each in self.predictions]
        if self._tagged:
            return [tuple(each) for each in expected], [tuple(each) for each in predicted]  # pyright: ignore
        return [list(map(str, expected))], [list(map(str, predicted))]


def side_by_side(reports: Mapping[str, Report]) -> str:
    """A table with a column for every task, by name, and a row for every metric; ``-`` where a task has none."""
    names = dict.fromkeys(name for report in reports.values() for name in report.metrics)
    rows = [["", *reports], ["n", *(str(report.n) for report in reports.values())]]
    return table([*rows, *([name, *(_format(r.metrics.get(name)) for r in reports.values())] for name in names)])


def classes_text(report: Report) -> str:
    """The table of classes and the confusion matrix, or its most frequent mistakes if it is too wide to be read."""
    rows = [["", "precision", "recall", "f1", "support"]]
    for label, scores in report.per_class().items():
        rows.append([label, *map(_format, (scores.precision, scores.recall, scores.f1)), str(scores.support)])
    return table(rows) if report.has_label_sets else f"{table(rows)}\n\n{_confusion_text(report.confusion())}"


def write_predictions(file: Path, reports: Mapping[str, Report]) -> None:
    """One JSON object a line: ``task``, ``index`` of the row from 0, ``expected``, ``predicted``, ``probs``.

    Raises UsageError if the file cannot be written.
    """
    try:
        file.write_text("".join(f"{line}\n" for line in _lines(reports)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; check the path.") from error


def _lines(reports: Mapping[str, Report]) -> Iterator[str]:
    for task, report in reports.items():
        for index, prediction in enumerate(report.predictions):
            yield json.dumps({"task": task, "index": index, **prediction.to_json()}, ensure_ascii=False)


def _confusion_text(confusion: ConfusionMatrix) -> str:
    labels = confusion.labels
    if len(labels) <= _MAX_MATRIX_LABELS:
        rows = [[label, *map(str, counts)] for label, counts in zip(labels, confusion.counts, strict=True)]
        return table([["expected \\ predicted", *labels], *rows])
    mistakes = [
        [expected, predicted, str(count)] for expected, predicted, count in confusion.mistakes()[:_MAX_MATRIX_LABELS]
    ]
    return table([["expected", "predicted", "times"], *mistakes])


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
