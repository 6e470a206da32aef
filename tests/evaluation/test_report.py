"""Reports as tables for people, and as lines for programs."""

from __future__ import annotations

import json

import pytest

from foreword.errors import UsageError
from foreword.evaluation.report import Prediction, Report, classes_text, side_by_side, write_predictions
from foreword.evaluation.table import table

LABELS = Report(
    3,
    {"accuracy": 2 / 3},
    [Prediction("b", "b", {"b": 0.9, "a": 0.1}), Prediction("a", "b", {"b": 0.6, "a": 0.4}), Prediction("a", "a", {})],
)
TAGS = Report(2, {}, [Prediction(("B-x", "I-x"), ("B-x", "O")), Prediction(("O", "B-y"), ("O", "B-y"))])
TEXTS = Report(
    2,
    {"exact_match": 0.5},
    [Prediction("你好", "hi", references=("你好", "hi")), Prediction("a", "b", references=("a",))],
)


def test_tasks_stand_side_by_side():
    assert side_by_side({"one@0001": LABELS, "two": TEXTS}).split("\n") == [
        "             one@0001     two",
        "n                   3       2",
        "accuracy       0.6667       -",
        "exact_match         -  0.5000",
    ]


def test_columns_stay_straight_with_wide_characters():
    assert table([["标签", "f1"], ["ab", "好"]]) == "标签  f1\nab    好"


def test_classes_of_labels():
    assert classes_text(LABELS).split("\n") == [
        "   precision  recall      f1  support",
        "b     0.5000  1.0000  0.6667        1",
        "a     1.0000  0.5000  0.6667        2",
        "",
        "expected \\ predicted  b  a",
        "b                     1  0",
        "a                     1  1",
    ]
    assert LABELS.classes_to_json()["confusion"] == {"labels": ("b", "a"), "counts": ((1, 0), (1, 1))}
    assert LABELS.classes_to_json()["per_class"]["b"]["recall"] == 1.0


def test_classes_of_tags_are_kinds_of_spans():
    assert {kind: scores.f1 for kind, scores in TAGS.per_class().items()} == {"x": 0.0, "y": 1.0}
    assert TAGS.confusion().labels == ("B-x", "B-y", "I-x", "O")
    words = Report(1, {}, [Prediction(("NOUN", "VERB"), ("NOUN", "NOUN"))])
    assert {tag: scores.support for tag, scores in words.per_class().items()} == {"NOUN": 1, "VERB": 1}


def test_a_wide_matrix_becomes_a_list_of_mistakes():
    pairs = [(f"{i:02}", f"{(i + 1) % 30:02}") for i in range(30)] + [("07", "03")] * 4
    shown = classes_text(Report(34, {}, [Prediction(*pair, {}) for pair in pairs])).split("\n\n")[1].split("\n")
    assert shown[0].split() == ["expected", "predicted", "times"]
    assert shown[1].split() == ["07", "03", "4"]
    assert len(shown) == 21


def test_generated_text_has_no_classes():
    with pytest.raises(UsageError, match="has no classes; leave out --per-class"):
        TEXTS.per_class()


def test_predictions_are_lines_of_json(tmp_path):
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, {"one": LABELS, "two": TEXTS, "three": TAGS})
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"task": "one", "index": 0, "expected": "b", "predicted": "b", "probs": {"b": 0.9, "a": 0.1}}
    assert lines[3] == {"task": "two", "index": 0, "expected": ["你好", "hi"], "predicted": "hi", "probs": None}
    assert lines[4]["expected"] == "a"
    assert lines[5]["predicted"] == ["B-x", "O"]
    assert "你好" in file.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot be written: .*; check the path"):
        write_predictions(tmp_path, {"one": LABELS})
