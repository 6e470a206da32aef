"""Spans in IOB2 tags (``B-PER I-PER O``), and how well they are found.

The figures are those of ``seqeval`` in its default mode, which are those of ``conlleval``; a test compares them. The
package itself is not used: it would bring scikit-learn and SciPy to every training of a tagging task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from foreword.evaluation.class_scores import ClassScores

OUTSIDE = "O"


class Span(NamedTuple):
    """Words ``first..last`` of sentence ``row``, both included."""

    kind: str
    row: int
    first: int
    last: int


def is_iob2(tags: Sequence[str]) -> bool:
    """Whether every tag is ``O``, ``B-KIND`` or ``I-KIND``, and one at least is not ``O``."""
    return set(tags) != {OUTSIDE} and all(tag == OUTSIDE or (tag[:2] in ("B-", "I-") and tag[2:]) for tag in set(tags))


def spans(tags: Sequence[str], row: int = 0) -> Iterator[Span]:
    """Spans of one sentence. An ``I-`` that continues nothing of its kind begins a span, as in ``conlleval``."""
    first, open_kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        kind = tag[2:] if tag[:2] in ("B-", "I-") else ""
        goes_on = tag[:2] == "I-" and kind == open_kind
        if open_kind and not goes_on:
            yield Span(open_kind, row, first, place - 1)
        if not goes_on:
            first, open_kind = place, kind


def span_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, ClassScores]:
    """Scores of every kind of span that occurs, by name; a span is right if its kind and both ends are."""
    hits, given, there = _counts(predicted, expected)
    return {kind: ClassScores.of(hits[kind], given[kind], there[kind]) for kind in sorted({*given, *there})}


def all_spans(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> ClassScores:
    """The same over all kinds together (micro average)."""
    return ClassScores.of(*(count.total() for count in _counts(predicted, expected)))


def _counts(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """How many of every kind are right, predicted and there."""
    given: set[Span] = set()
    there: set[Span] = set()
    for row, (said, right) in enumerate(zip(predicted, expected, strict=True)):
        if len(said) != len(right):
            raise ValueError(f"row {row} has {len(said)} predicted tags and {len(right)} expected ones")
        given.update(spans(said, row))
        there.update(spans(right, row))
    found = (given & there, given, there)
    hits, said, right = (Counter(span.kind for span in group) for group in found)
    return hits, said, right
