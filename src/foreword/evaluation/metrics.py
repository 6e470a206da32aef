"""The metrics of each kind of task. The first of each is the one that runs are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foreword.evaluation import text_metrics as texts
from foreword.evaluation.calibration import expected_calibration_error
from foreword.evaluation.confusion import ConfusionMatrix
from foreword.evaluation.spans import is_iob2, micro_span_scores

_TEXT: dict[str, Callable[[Sequence[str], texts.References], float]] = {
    "exact_match": texts.exact_match,
    "token_f1": texts.token_f1,
    "bleu": texts.bleu,
    "rouge_l": texts.rouge_l,
    "chrf": texts.chrf,
}


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Share of predictions that equal their reference."""
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of every label that occurs in predictions or references, averaged with equal weight."""
    return ConfusionMatrix.from_predictions(predicted, expected).macro_f1()


def label_metrics(predicted: Sequence[str], expected: Sequence[str], confidences: Sequence[float]) -> dict[str, float]:
    """Metrics of one label a row.

    Args:
        confidences: probability of every prediction.
    """
    confusion = ConfusionMatrix.from_predictions(predicted, expected)
    correct = [p == e for p, e in zip(predicted, expected, strict=True)]
    return {
        "accuracy": confusion.accuracy(),
        "macro_f1": confusion.macro_f1(),
        "matthews": confusion.matthews_corrcoef(),
        "calibration_error": expected_calibration_error(confidences, correct),
    }


def tag_metrics(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Metrics of one tag a word: of spans if these are IOB2 tags, and of single words.

    Parts of speech and the like have no spans; they get the metrics of words alone.
    """
    words_predicted, words_expected = ([tag for tags in rows for tag in tags] for rows in (predicted, expected))
    words = ConfusionMatrix.from_predictions(words_predicted, words_expected)
    word_metrics = {"accuracy": words.accuracy(), "macro_f1": words.macro_f1()}
    if not is_iob2([*words_predicted, *words_expected]):
        return word_metrics
    spans = micro_span_scores(predicted, expected)
    return {"span_f1": spans.f1, "span_precision": spans.precision, "span_recall": spans.recall, **word_metrics}


def text_metrics(predicted: Sequence[str], references: texts.References) -> dict[str, float]:
    """Metrics of generated texts, without those of `texts.unavailable_metrics`.

    Args:
        references: one text or more for every row.
    """
    missing = texts.unavailable_metrics()
    return {name: score(predicted, references) for name, score in _TEXT.items() if name not in missing}
