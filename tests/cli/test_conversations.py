"""Conversations through the commands: learned without flags, measured, compared, rated, for many and in a search."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from training.small_data import write_jsonl

SMALL = ("--init", "random", "--length", 4, "--max-steps", 4, "--batch-size", 4)


def talks(count: int, key: str = "messages") -> list[dict]:
    rows = []
    for number in range(count):
        ask = [{"role": "user", "content": f"ask {number}"}, {"role": "assistant", "content": "yes"}]
        more = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": f"no {number % 3}"}]
        rows.append({key: [*ask, *more] if number % 2 else ask})
    return rows


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "talks.jsonl", talks(12))


def test_learned_published_measured_and_rated(run, data):
    done = run("train", "--data", data, *SMALL, "--publish", "shop", "--json")
    assert done.status == 0, done.err
    assert done.json["n"] == 1
    assert "perplexity" in done.json["metrics"]
    task = run("bank", "show", "shop", "--json").json
    assert task["template"] is None
    words = ("eval", "shop", "--data", data, "--compare", "base")
    measured = run(*words, "--predictions", "answers.jsonl", "--blind", "sheet.csv", "--json")
    assert measured.status == 0, measured.err
    first, base = measured.json, measured.json["compare"][0]
    assert first["n"] == base["n"] == 12
    assert first["metrics"]["perplexity"] != base["metrics"]["perplexity"]
    predictions = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [each["expected"] for each in predictions[:2]] == ["yes", "no 1"]
    with Path("sheet.csv").open(encoding="utf-8-sig", newline="") as sheet:
        rows = list(csv.DictReader(sheet))
    assert rows[1]["input: conversation"] == "user: ask 1\nassistant: yes\nuser: and?"
    last = run("eval", "shop", "--data", data, "--learn-turns", "last", "--json").json
    assert last["metrics"]["perplexity"] != first["metrics"]["perplexity"]
    assert last["metrics"]["exact_match"] == first["metrics"]["exact_match"]
    refused = run("eval", "shop", "--data", data, "--learn-turns", "some")
    assert (refused.status, "--learn-turns must be all or last" in refused.err) == (2, True)


def test_long_conversations_are_refused_or_left_out(run, data):
    rows = [*talks(8), {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}]
    long = write_jsonl(Path("long.jsonl"), rows)
    refused = run("train", "--data", long, *SMALL)
    assert refused.status == 2
    assert "long.jsonl line 9: the example has" in refused.err
    cut = run("train", "--data", long, *SMALL, "--long-rows", "cut messages")
    assert "--long-rows cut would part answers from their questions; use skip" in cut.err
    skipped = run("train", "--data", long, *SMALL, "--long-rows", "skip", "--json")
    assert skipped.status == 0, skipped.err


def test_for_many_users_and_in_a_search(run, data):
    folder = Path("users")
    folder.mkdir()
    for name in ("anna", "ben"):
        write_jsonl(folder / f"{name}.jsonl", talks(10, "conversations"))
    many = run("train-many", folder, *SMALL, "--no-publish", "--shared-init", "--out", "many", "--json")
    assert many.status == 0, many.err
    assert many.json["learned"] == 2
    found = run("search", "--data", data, "--vary", "lr=[0.01,0.1]", *SMALL, "--publish", "best", "--json")
    assert found.status == 0, found.err
    assert run("bank", "show", "best", "--json").json["template"] is None


def test_classifying_with_a_conversation_task_is_refused(run, data):
    assert run("train", "--data", data, *SMALL, "--publish", "shop").status == 0
    refused = run("classify", "shop", "x")
    assert refused.status != 0
    assert "or use generate or chat" in refused.err
    assert "Traceback" not in refused.err
    other = write_jsonl(Path("labels.jsonl"), [{"text": "a", "label": "b"}] * 3)
    refused = run("eval", "shop", "--data", other)
    assert "ask it in a chat, and evaluate it on conversations" in refused.err
