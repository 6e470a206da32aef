"""Figures of labels, against values worked out by hand and properties that hold for all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foreword.evaluation.calibration import expected_calibration_error
from foreword.evaluation.confusion import ConfusionMatrix
from foreword.evaluation.metrics import accuracy, label_metrics, macro_f1, tag_metrics, text_metrics
from foreword.evaluation.perplexity import perplexity

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=12)


def test_accuracy():
    assert accuracy(list("aabb"), list("abbb")) == 0.75
    assert accuracy(["x"], ["y"]) == 0.0


def test_macro_f1():
    # a: precision 1/2, recall 1, F1 2/3; b: precision 1, recall 2/3, F1 4/5.
    assert macro_f1(list("aabb"), list("abbb")) == pytest.approx((2 / 3 + 4 / 5) / 2)
    # c is predicted but never right, d is expected but never predicted: both count as 0.
    assert macro_f1(list("aac"), list("aad")) == pytest.approx((1 + 0 + 0) / 3)
    assert macro_f1(list("ab"), list("ab")) == 1.0


def test_unequal_lengths_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        accuracy(["a"], ["a", "b"])


def test_confusion_and_the_table_of_classes():
    found = ConfusionMatrix.from_predictions(list("aabbb"), list("abbbc"), labels=("c", "a"))
    assert found.labels == ("c", "a", "b")
    assert found.counts == ((0, 0, 1), (0, 1, 0), (0, 1, 2))
    scores = found.per_class()["b"]
    assert (scores.precision, scores.recall, scores.support) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert found.per_class()["c"] == found.per_class()["c"].from_counts(0, 0, 1)
    assert found.mistakes() == [("c", "b", 1), ("b", "a", 1)]


def test_a_label_that_nobody_used_is_shown_but_not_averaged():
    found = ConfusionMatrix.from_predictions(list("ab"), list("ab"), labels=("a", "b", "unused"))
    assert found.macro_f1() == 1.0
    assert found.per_class()["unused"].f1 == 0.0


def test_matthews_of_two_labels_is_the_formula_of_1975():
    # 5 true positives, 2 false positives, 1 false negative, 4 true negatives.
    predicted, expected = list("1" * 7 + "0" * 5), list("1" * 5 + "00" + "1" + "0" * 4)
    assert ConfusionMatrix.from_predictions(predicted, expected).matthews_corrcoef() == pytest.approx(
        (5 * 4 - 2 * 1) / math.sqrt(7 * 6 * 6 * 5)
    )
    assert ConfusionMatrix.from_predictions(list("aaaa"), list("aabb")).matthews_corrcoef() == 0.0


def test_matthews_of_three_labels():
    # scikit-learn 1.9: matthews_corrcoef(list("abcacb"), list("abcabc"))
    assert ConfusionMatrix.from_predictions(list("abcacb"), list("abcabc")).matthews_corrcoef() == pytest.approx(0.5)


@given(PAIRS)
def test_figures_stay_in_their_range_and_perfect_is_one(pairs):
    expected, predicted = zip(*pairs, strict=True)
    found = ConfusionMatrix.from_predictions(predicted, expected)
    assert 0 <= found.accuracy() <= 1
    assert 0 <= found.macro_f1() <= 1
    assert -1 - 1e-12 <= found.matthews_corrcoef() <= 1 + 1e-12
    assert ConfusionMatrix.from_predictions(expected, predicted).matthews_corrcoef() == pytest.approx(
        found.matthews_corrcoef()
    )
    right = ConfusionMatrix.from_predictions(expected, expected)
    assert right.accuracy() == right.macro_f1() == 1
    assert right.matthews_corrcoef() == pytest.approx(float(len(set(expected)) > 1))
    assert sum(map(sum, found.counts)) == len(pairs)


def test_expected_calibration_error():
    # Bins (0.8, 0.867] and (0.933, 1]: |0.84 - 1/2| for two of four, |0.95 - 1| for the others.
    assert expected_calibration_error([0.85, 0.83, 0.95, 0.95], [True, False, True, True]) == pytest.approx(0.195)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1.0
    # A bin is closed above: 0.2 is in (0.133, 0.2] with 0.14, and one is right where 0.17 are expected to be.
    assert expected_calibration_error([0.2, 0.14], [True, False]) == pytest.approx(0.33)
    assert expected_calibration_error([0.5, 0.5], [True, False], bins=1) == 0.0


def test_a_probability_that_is_no_number_shows():
    assert math.isnan(expected_calibration_error([0.5, math.nan], [True, False]))
    assert math.isnan(label_metrics(["a"], ["a"], [math.nan])["calibration_error"])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.integers(1, 20))
def test_expected_calibration_error_is_at_least_the_gap_of_the_means(pairs, bins):
    confidences, right = zip(*pairs, strict=True)
    gap = abs(sum(confidences) - sum(right)) / len(pairs)
    assert gap - 1e-9 <= expected_calibration_error(confidences, right, bins) <= 1 + 1e-9


def test_perplexity_is_a_mean_over_tokens_not_over_rows():
    eighth, half = torch.tensor([0.5, 0.5, 0.5]).log(), torch.tensor([0.5]).log()
    assert perplexity([eighth, half]) == pytest.approx(2.0)
    assert perplexity([torch.tensor([1 / 16]).log(), torch.zeros(3)]) == pytest.approx(2.0)
    assert perplexity([torch.tensor([-1e6])]) == math.inf
    assert perplexity([torch.tensor([-math.inf])]) == math.inf


def test_what_a_task_is_measured_by():
    assert list(label_metrics(["a"], ["b"], [0.5])) == ["accuracy", "macro_f1", "matthews", "calibration_error"]
    names = ["exact_match", "token_f1", "bleu", "rouge_l", "chrf"]
    assert list(text_metrics(["a"], [["b"]])) == names
    assert next(iter(tag_metrics([["O"]], [["B-a"]]))) == "span_f1"
    assert list(tag_metrics([["NOUN"]], [["VERB"]])) == ["accuracy", "macro_f1"]
