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
    hits, found, wanted = _counts(predicted, expected)
    return {kind: ClassScores.from_counts(hits[kind], found[kind], wanted[kind]) for kind in sorted({*found, *wanted})}


def micro_span_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> ClassScores:
    """Scores over all kinds of spans together (micro average), as seqeval and ``conlleval`` report them."""
    return ClassScores.from_counts(*(count.total() for count in _counts(predicted, expected)))


def _counts(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """True positives, predictions and references of every kind of span."""
    found: set[Span] = set()
    wanted: set[Span] = set()
    for row, (tags, references) in enumerate(zip(predicted, expected, strict=True)):
        if len(tags) != len(references):
            raise ValueError(f"row {row} has {len(tags)} predicted tags and {len(references)} expected ones")
        found.update(spans(tags, row))
        wanted.update(spans(references, row))
    hits, predictions, support = (Counter(span.kind for span in group) for group in (found & wanted, found, wanted))
    return hits, predictions, support
