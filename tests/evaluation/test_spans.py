"""Spans against what ``seqeval`` gives for the same tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.evaluation.metrics import tag_metrics
from foreword.evaluation.spans import Span, is_iob2, micro_span_scores, span_scores, spans

# Random tags with the figures of seqeval 1.2.2 in its default mode, over all kinds and for each. The package is not
# among the tests' dependencies: it would bring scikit-learn, which Transformers then imports everywhere.
CASES = Path(__file__).with_name("seqeval_cases.jsonl").read_text().splitlines()
TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), min_size=1, max_size=9)


@pytest.mark.parametrize("line", CASES)
def test_scores_are_those_of_seqeval(line):
    case = json.loads(line)
    predicted, expected = ([tags.split() for tags in case[side]] for side in ("predicted", "expected"))
    scores = micro_span_scores(predicted, expected)
    assert [scores.precision, scores.recall, scores.f1] == pytest.approx(case["micro"])
    kinds = {kind: [s.precision, s.recall, s.f1, s.support] for kind, s in span_scores(predicted, expected).items()}
    assert kinds == {kind: pytest.approx(figures) for kind, figures in case["kinds"].items()}


def test_spans_of_a_sentence():
    assert list(spans(["B-PER", "I-PER", "B-PER", "O", "I-LOC", "B-LOC", "I-PER"], row=3)) == [
        Span("PER", 3, 0, 1),
        Span("PER", 3, 2, 2),
        Span("LOC", 3, 4, 4),
        Span("LOC", 3, 5, 5),
        Span("PER", 3, 6, 6),
    ]
    assert list(spans(["B-a-b", "I-a-b", "O"])) == [Span("a-b", 0, 0, 1)]
    assert list(spans(["O", "NOUN"])) == []


@given(TAGS)
def test_spans_do_not_overlap_and_cover_every_tag_but_o(tags):
    covered = [place for span in spans(tags) for place in range(span.first, span.last + 1)]
    assert covered == [place for place, tag in enumerate(tags) if tag != "O"]


@given(TAGS)
def test_what_equals_the_reference_is_perfect(tags):
    if any(tag != "O" for tag in tags):
        assert micro_span_scores([tags], [tags]).f1 == 1.0


def test_a_span_must_end_where_it_should():
    assert tag_metrics([["B-a", "I-a", "O"]], [["B-a", "O", "O"]])["span_f1"] == 0.0
    assert tag_metrics([["B-a", "I-a", "O"]], [["B-a", "O", "O"]])["accuracy"] == pytest.approx(2 / 3)


def test_a_tag_more_or_less_is_a_mistake():
    with pytest.raises(ValueError, match="row 0 has 1 predicted tags and 2 expected"):
        micro_span_scores([["O"]], [["O", "B-a"]])


def test_which_tags_have_spans():
    assert is_iob2(["O", "B-a", "I-a"])
    assert not is_iob2(["O", "O"])
    assert not is_iob2(["NOUN", "VERB"])
    assert not is_iob2(["B-", "O"])
