"""Metrics against values worked out by hand."""

from __future__ import annotations

import pytest

from foreword.evaluation.metrics import accuracy, macro_f1


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
