"""The metrics of each kind of task. The first of each is the one that runs are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foreword.evaluation import text_metrics as texts
from foreword.evaluation.calibration import expected_calibration_error
from foreword.evaluation.class_scores import ClassScores
from foreword.evaluation.confusion import ConfusionMatrix
from foreword.evaluation.correlation import pearson, spearman
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


def label_set_metrics(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Metrics of several labels a row, as scikit-learn has them: F1 over all decisions (micro), the mean of the labels'
    own F1 (macro), and the share of rows whose labels are all right and complete (subset accuracy).

    Args:
        labels: all of the task; one that neither occurs nor is predicted has an F1 of 0 and is counted.
    """
    each = label_set_scores(predicted, expected, labels)
    hits = sum(len(set(p) & set(e)) for p, e in zip(predicted, expected, strict=True))
    micro = ClassScores.from_counts(hits, sum(map(len, predicted)), sum(map(len, expected)))
    exact = sum(set(p) == set(e) for p, e in zip(predicted, expected, strict=True)) / len(expected)
    macro = sum(scores.f1 for scores in each.values()) / len(each)
    return {"micro_f1": micro.f1, "macro_f1": macro, "subset_accuracy": exact}


def label_set_scores(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, ClassScores]:
    """Scores of every label, where a row may have several."""
    pairs = list(zip(predicted, expected, strict=True))
    return {
        label: ClassScores.from_counts(
            sum(label in p and label in e for p, e in pairs),
            sum(label in p for p, _ in pairs),
            sum(label in e for _, e in pairs),
        )
        for label in labels
    }


def regression_metrics(predicted: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
    """Metrics of a number a row."""
    errors = [p - e for p, e in zip(predicted, expected, strict=True)]
    return {
        "pearson": pearson(predicted, expected),
        "spearman": spearman(predicted, expected),
        "mse": sum(error**2 for error in errors) / len(errors),
        "mae": sum(map(abs, errors)) / len(errors),
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
