"""Which figures belong to which kind of task. The first of each is the one that runs are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foreword.evaluation import texts
from foreword.evaluation.calibration import calibration_error
from foreword.evaluation.confusion import Confusion
from foreword.evaluation.spans import all_spans, is_iob2

_TEXT: dict[str, Callable[[Sequence[str], texts.References], float]] = {
    "exact_match": texts.exact_match,
    "token_f1": texts.token_f1,
    "bleu": texts.bleu,
    "rouge_l": texts.rouge_l,
    "chrf": texts.chrf,
}


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Share of predictions that equal their reference."""
    return sum(said == right for said, right in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of every label that occurs in predictions or references, averaged with equal weight."""
    return Confusion.of(predicted, expected).macro_f1()


def label_metrics(predicted: Sequence[str], expected: Sequence[str], confidences: Sequence[float]) -> dict[str, float]:
    """Figures of one label a row.

    Args:
        confidences: probability of every prediction.
    """
    confusion = Confusion.of(predicted, expected)
    right = [said == label for said, label in zip(predicted, expected, strict=True)]
    return {
        "accuracy": confusion.accuracy(),
        "macro_f1": confusion.macro_f1(),
        "matthews": confusion.matthews(),
        "calibration_error": calibration_error(confidences, right),
    }


def tag_metrics(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Figures of a tag a word: of spans if these are IOB2 tags, and of single words.

    Parts of speech and the like have no spans; they get the figures of words alone.
    """
    said, right = ([tag for tags in rows for tag in tags] for rows in (predicted, expected))
    words = Confusion.of(said, right)
    figures = {"accuracy": words.accuracy(), "macro_f1": words.macro_f1()}
    if not is_iob2([*said, *right]):
        return figures
    spans = all_spans(predicted, expected)
    return {"span_f1": spans.f1, "span_precision": spans.precision, "span_recall": spans.recall, **figures}


def text_metrics(predicted: Sequence[str], references: texts.References) -> dict[str, float]:
    """Figures of generated texts, but for those that `texts.unmeasured` names.

    Args:
        references: one text or more for every row.
    """
    missing = texts.unmeasured()
    return {name: score(predicted, references) for name, score in _TEXT.items() if name not in missing}
