"""`Prediction` and `Report`: what an evaluation gives, for programs and for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foreword.errors import UsageError
from foreword.evaluation.class_scores import ClassScores
from foreword.evaluation.confusion import Confusion
from foreword.evaluation.spans import is_iob2, span_scores
from foreword.evaluation.table import table

# A matrix of more labels than this is not read but searched; for people it becomes a list of mistakes.
_WIDEST = 20


@dataclass(frozen=True)
class Prediction:
    """One row's answer.

    Attributes:
        expected: a label, the tags of its words, or the text wanted (the first one if there are several).
        predicted: likewise; texts are without surrounding white space.
        probs: probability of every label; None for tags and generated text.
        references: all texts wanted; one or more for generated text, none otherwise.
        surprise: minus the log-probability of what was expected, the mean over a row's words; None for generated text.
    """

    expected: str | tuple[str, ...]
    predicted: str | tuple[str, ...]
    probs: dict[str, float] | None = None
    references: tuple[str, ...] = ()
    surprise: float | None = None

    def to_json(self) -> dict[str, Any]:
        """``expected`` (a list of all references if there are several), ``predicted`` and ``probs``."""
        expected = self.references if len(self.references) > 1 else self.expected
        return {"expected": expected, "predicted": self.predicted, "probs": self.probs}


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        n: rows.
        metrics: figures over all of them.
        predictions: in the order of the rows.
        unmeasured: figures that are left out because the `[eval]` extra is not installed.
    """

    n: int
    metrics: dict[str, float]
    predictions: list[Prediction]
    unmeasured: tuple[str, ...] = ()

    @property
    def loss(self) -> float | None:
        """Minus the log-probability of what was expected: the mean over rows of labels, over tokens of generated text.

        None for generated text that has no tokens to measure.
        """
        if self.predictions[0].references:
            perplexity = self.metrics.get("perplexity")
            return math.log(perplexity) if perplexity else None
        return sum(prediction.surprise or 0.0 for prediction in self.predictions) / self.n

    def confusion(self) -> Confusion:
        """Which labels, or which tags, were taken for which. Raises UsageError for generated text."""
        expected, predicted = self._tags()
        if not self._tagged:
            return Confusion.of(predicted[0], expected[0], labels=tuple(self.predictions[0].probs or ()))
        return Confusion.of([tag for row in predicted for tag in row], [tag for row in expected for tag in row])

    def per_class(self) -> dict[str, ClassScores]:
        """Scores of every label; for IOB2 tags of every kind of span. Raises UsageError for generated text."""
        expected, predicted = self._tags()
        if self._tagged and is_iob2([tag for row in (*expected, *predicted) for tag in row]):
            return span_scores(predicted, expected)
        return self.confusion().per_class()

    def classes_to_json(self) -> dict[str, Any]:
        """``per_class`` and ``confusion``. Raises UsageError for generated text."""
        confusion = self.confusion()
        return {
            "per_class": {label: asdict(scores) for label, scores in self.per_class().items()},
            "confusion": {"labels": confusion.labels, "counts": confusion.counts},
        }

    @property
    def _tagged(self) -> bool:
        return isinstance(self.predictions[0].predicted, tuple)

    def _tags(self) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
        """Expected and predicted tags, row by row; the labels of whole texts are one row."""
        if self.predictions[0].references:
            raise UsageError("a task that generates text has no classes; leave out --per-class.")
        expected = [found.expected for found in self.predictions]
        predicted = [found.predicted for found in self.predictions]
        if self._tagged:
            return list(map(tuple, expected)), list(map(tuple, predicted))
        return [list(map(str, expected))], [list(map(str, predicted))]


def side_by_side(reports: Mapping[str, Report]) -> str:
    """A table with a column for every task, by name, and a row for every figure; ``-`` where a task has none."""
    names = dict.fromkeys(name for report in reports.values() for name in report.metrics)
    rows = [["", *reports], ["n", *(str(report.n) for report in reports.values())]]
    return table([*rows, *([name, *(_figure(r.metrics.get(name)) for r in reports.values())] for name in names)])


def classes_text(report: Report) -> str:
    """The table of classes and the confusion matrix, or its most frequent mistakes if it is too wide to be read."""
    rows = [["", "precision", "recall", "f1", "support"]]
    for label, scores in report.per_class().items():
        rows.append([label, *map(_figure, (scores.precision, scores.recall, scores.f1)), str(scores.support)])
    return f"{table(rows)}\n\n{_confusion_text(report.confusion())}"


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
        for index, found in enumerate(report.predictions):
            yield json.dumps({"task": task, "index": index, **found.to_json()}, ensure_ascii=False)


def _confusion_text(confusion: Confusion) -> str:
    labels = confusion.labels
    if len(labels) <= _WIDEST:
        rows = [[label, *map(str, counts)] for label, counts in zip(labels, confusion.counts, strict=True)]
        return table([["expected \\ predicted", *labels], *rows])
    mistakes = [[expected, said, str(count)] for expected, said, count in confusion.mistakes()[:_WIDEST]]
    return table([["expected", "predicted", "times"], *mistakes])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
