"""``foreword data``: what is in a file, what would be learned from it, and why it would be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foreword.cli.app import app
from foreword.cli.flags import join_words
from tiny_models import save_tiny

ROWS = [{"Tweet text": "x" * (n + 1), "n": n, "label": "yn"[n % 2]} for n in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*args: str) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, ["data", *args])
    return done.exit_code, done.stdout, done.exception


def test_a_file_is_described(model):
    Path("t.json").write_text(json.dumps([*ROWS, {"Tweet text": "z" * 300, "n": None, "label": "Y"}]))
    status, out, _ = run("t.json", "--model", model, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["what"], found["n"], found["labels"]) == ("a JSON array", 21, {"Y": 1, "n": 10, "y": 10})
    assert found["fields"][1] == {"name": "n", "types": {"number": 20}, "missing": 1, "first": 0}
    assert found["templates"] == ["{Tweet text}\nLabel:{mask}"]
    # A byte a token: the text, "\nLabel:", and the word with its blank.
    assert (found["tokens"]["p50"], found["tokens"]["max"]) == (11 + 7 + 2, 300 + 7 + 2)
    assert (found["tokens"]["context"], found["tokens"]["too_long"]) == (256, 1)
    assert any("differ only in case" in warning for warning in found["warnings"])
    assert found["examples"][0] == {
        "where": "t.json row 1",
        "pieces": [{"text": "x\nLabel:", "answer": False}, {"text": " y", "answer": True}],
    }
    assert found["problem"] is None
    status, out, _ = run("t.json", "--model", model, "--long-rows", "skip")
    assert status == 0
    for line in ("t.json: 21 rows, a JSON array", "Label:« y»", "1 are too long", "left out 1 of 21 rows"):
        assert line in out


def test_what_train_would_refuse_is_refused(model):
    Path("t.csv").write_text("text;label\na;y\nb;\n")
    status, out, error = run("t.csv", "--model", model)
    assert status != 0
    assert "t.csv: 2 rows, CSV with semicolons" in out
    assert str(error) == "t.csv line 3: the label is empty; write the label, or take the row out."
    status, out, _ = run("t.csv", "--model", model, "--json")
    assert json.loads(out)["problem"] == str(error)
    Path("t.csv").write_text("text;label\na;y\nb;n\n")
    assert "no field 'txt'" in str(run("t.csv", "--model", model, "--template", "{txt}{mask}")[2])
    assert "no.csv cannot be read" in str(run("no.csv", "--model", model)[2])


def test_tags_texts_heads_and_conversations(model):
    shown = {}
    cases = {
        "tags": ({"tokens": ["a", "b"], "label": ["O", "B"]}, {"tokens": ["c"], "label": ["O"]}),
        "text": ({"q": "why", "a": "so"}, {"q": "how", "a": "thus"}),
        "many": ({"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}),
        "number": ({"text": "a", "label": 1.5}, {"text": "b", "label": 0.25}),
        "turns": ({"prompt": "why", "completion": "so"}, {"prompt": "how", "completion": "thus"}),
    }
    for name, rows in cases.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = {"text": ["--template", "{q}:{target:a}"], "number": ["--problem-type", "regression"]}.get(name, [])
        status, out, error = run(f"{name}.jsonl", "--model", model, "--json", *flags)
        assert status == 0, error
        pieces = json.loads(out)["examples"][0]["pieces"]
        shown[name] = "".join(f"«{each['text']}»" if each["answer"] else each["text"] for each in pieces)
    assert shown["tags"] == "a«/O »b«/B »"
    assert shown["text"] == "why:«so»"
    assert shown["many"] == "a« x, y»"
    assert shown["number"] == "a« 1.5»"
    assert "«" in shown["turns"]


def test_without_a_model_tokens_are_not_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "nowhere"))
    monkeypatch.delenv("FOREWORD_MODEL", raising=False)
    Path("t.jsonl").write_text(
        "".join(json.dumps({"text": row["Tweet text"], "label": row["label"]}) + "\n" for row in ROWS)
    )
    status, out, _ = run("t.jsonl", "--json")
    assert (status, json.loads(out)["tokens"]) == (0, None)


def test_no_weights_are_read(model, monkeypatch):
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for file in Path(model).glob("*.safetensors"):
        file.rename(file.with_suffix(".hidden"))
    try:
        assert run("t.jsonl", "--model", model)[0] == 0
    finally:
        for file in Path(model).glob("*.hidden"):
            file.rename(file.with_suffix(".safetensors"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--long-rows", "cut", "text", "--json"], ["--long-rows", "cut text", "--json"]),
        (["--long-rows", "cut", "--json"], ["--long-rows", "cut", "--json"]),
        (["--long-rows", "skip", "recipe.yaml"], ["--long-rows", "skip", "recipe.yaml"]),
    ],
)
def test_a_field_to_cut_is_a_word_of_its_own(args, expected):
    assert join_words(args) == expected


def test_a_missing_file_is_said_before_a_missing_model(monkeypatch):
    monkeypatch.setenv("FOREWORD_HOME", str(Path("empty").absolute()))
    monkeypatch.delenv("FOREWORD_MODEL", raising=False)
    done = CliRunner().invoke(app, ["data", "nothing.jsonl"])
    assert "nothing.jsonl cannot be read" in str(done.exception)
    assert "tokens are not counted" not in done.output
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert "tokens are not counted: " in CliRunner().invoke(app, ["data", "t.jsonl"]).output
