"""Many tasks out of one data set: which rows a task gets."""

from __future__ import annotations

import json
import random

import pytest

ROWS = [
    {"text": f"{intent} {number}", "intent": intent, "domain": intent[:1]}
    for intent in ("a_one", "a_two", "b_one")
    for number in range(6)
]


@pytest.fixture(scope="module")
def example(load):
    return load("many_tasks.py")


def test_an_intent_has_as_many_rows_of_others_as_of_its_own(example):
    tasks = example.by_intent(ROWS, 4, random.Random(0))
    assert sorted(tasks) == ["a_one", "a_two", "b_one"]
    for intent, rows in tasks.items():
        assert [row["label"] for row in rows].count("yes") == 4
        assert all((row["label"] == "yes") == row["text"].startswith(intent) for row in rows)
        assert len(rows) == 8


def test_a_domain_has_the_rows_of_its_intents(example):
    tasks = example.by_domain(ROWS, 2, random.Random(0))
    assert {name: [row["label"] for row in rows] for name, rows in tasks.items()} == {
        "a": ["a one", "a one", "a two", "a two"],
        "b": ["b one", "b one"],
    }


def test_it_writes_a_folder_for_train_and_for_dev(run, tmp_path):
    for part in ("train", "dev"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    said = run("many_tasks.py", "--data", tmp_path, "--rows", 4, "--tasks", 2, "--out", tmp_path / "tasks")
    assert "2 tasks" in said
    found = {part: sorted(file.stem for file in (tmp_path / "tasks" / part).iterdir()) for part in ("train", "dev")}
    assert found == {"train": ["a_one", "a_two"], "dev": ["a_one", "a_two"]}
