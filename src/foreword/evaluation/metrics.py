"""Scores of predictions against references."""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Share of predictions that equal their reference."""
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def macro_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of every label that occurs in predictions or references, averaged with equal weight."""
    labels = sorted({*predicted, *expected})
    pairs = list(zip(predicted, expected, strict=True))
    return sum(_f1(pairs, label) for label in labels) / len(labels)


def _f1(pairs: list[tuple[str, str]], label: str) -> float:
    hits = sum(p == label and e == label for p, e in pairs)
    mentions = sum((p == label) + (e == label) for p, e in pairs)
    return 2 * hits / mentions
