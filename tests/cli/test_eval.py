"""``foreword eval`` as a user types it: figures, comparison, files, rating sheets, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from foreword.bank.bank import Bank
from foreword.core import Head, KVPrefix, Task
from foreword.prompts.lower import empty_prefix, lower_tokens
from tiny_models import tiny_model

WORDS = {"positive": (" great",), "negative": (" bad",)}


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """Two tasks that label, one that writes, one that tags; their prefixes are random."""
    bank = Bank(tmp_path / "home" / "bank")
    labels = {"template": "Review: {text}\nSentiment:{mask}", "verbalizer": WORDS}
    bank.publish(Task("one", "p-tuning-v2", random_prefix(1), **labels))
    bank.publish(Task("two", "p-tuning-v2", random_prefix(2), **labels))
    writes = {"template": "{text} means {target:label}", "generation": {"max_tokens": 4}}
    bank.publish(Task("writer", "p-tuning-v2", random_prefix(3), **writes))
    return bank


def random_prefix(seed: int) -> KVPrefix:
    identity, draw = tiny_model("llama").identity, torch.Generator().manual_seed(seed)
    keys = tuple(torch.randn(s.kv_heads, 4, s.key_dim, generator=draw) for s in identity.layers)
    values = tuple(torch.randn(s.kv_heads, 4, s.value_dim, generator=draw) for s in identity.layers)
    return KVPrefix(identity, keys, values, offset=4)


def test_figures_of_one_task(run, bank, reviews):
    found = run("eval", "one", "--data", reviews, "--json")
    assert found.status == 0, found.err
    assert set(found.json) == {"n", "metrics", "task"}
    assert found.json["n"] == 24
    assert found.json["task"].startswith("one@0001-")
    assert set(found.json["metrics"]) == {"accuracy", "macro_f1", "matthews", "calibration_error"}
    shown = run("eval", "one", "--data", reviews).out.split("\n")
    assert shown[0].split() == [found.json["task"]]
    assert shown[2].split() == ["accuracy", f"{found.json['metrics']['accuracy']:.4f}"]


def test_limit_takes_the_first_rows(run, bank, reviews):
    assert run("eval", "one", "--data", reviews, "--limit", 3, "--json").json["n"] == 3
    assert run("eval", "one", "--data", reviews, "--limit", 0).status == 2


def test_several_tasks_and_the_base_model_side_by_side(run, bank, reviews, folder):
    args = ("eval", "one", "--data", reviews, "--compare", "two", "--compare", "base")
    found = run(*args, "--json").json
    assert [row["task"].split("@")[0] for row in found["compare"]] == ["two", str(folder)]
    assert all(set(row) == {"n", "metrics", "task"} for row in found["compare"])
    assert run("eval", "one", "two", "base", "--data", reviews, "--json").json == found
    assert run("eval", "two", "--data", reviews, "--json").json["metrics"] == found["compare"][0]["metrics"]
    header, rows, *_ = run(*args).out.split("\n")
    assert header.split() == [found["task"], found["compare"][0]["task"], str(folder)]
    assert rows.split() == ["n", "24", "24", "24"]


def test_base_is_the_template_without_the_prefix(run, bank, reviews, folder):
    base = run("eval", "one", "--data", reviews, "--compare", folder, "--predictions", "p.jsonl", "--json").json
    labels = {"template": "Review: {text}\nSentiment:{mask}", "verbalizer": WORDS}
    bank.publish(Task("bare", "manual", empty_prefix(tiny_model("llama")), **labels))
    bare = run("eval", "bare", "--data", reviews, "--predictions", "q.jsonl", "--json").json
    assert base["compare"][0]["metrics"] == pytest.approx(bare["metrics"])
    lines = [line for name in "pq" for line in Path(f"{name}.jsonl").read_text().splitlines()]
    probs = [json.loads(line)["probs"]["positive"] for line in lines]
    assert probs[24:48] == pytest.approx(probs[48:], rel=1e-3)
    assert probs[:24] != pytest.approx(probs[48:], rel=1e-2)


def test_a_task_called_base_is_itself(run, bank, reviews):
    bank.publish(Task("base", "p-tuning-v2", random_prefix(4), template="{text}:{mask}", verbalizer=WORDS))
    found = run("eval", "one", "--data", reviews, "--compare", "base", "--json").json
    assert found["compare"][0]["task"].startswith("base@0001-")


def test_generated_text(run, bank, reviews):
    found = run("eval", "writer", "--data", reviews, "--limit", 4, "--json").json
    assert list(found["metrics"]) == ["exact_match", "token_f1", "bleu", "rouge_l", "chrf", "perplexity"]


def test_what_the_extra_would_measure_is_said(run, bank, reviews, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    found = run("eval", "writer", "--data", reviews, "--limit", 2, "--json")
    assert "rouge_l" not in found.json["metrics"]
    assert found.err.strip().split("\n")[-1] == "not measured: rouge_l; they need: pip install 'foreword[eval]'"


def test_predictions_and_classes(run, bank, reviews):
    args = ("eval", "one", "--data", reviews, "--per-class", "--predictions", "out.jsonl")
    found = run(*args, "--json").json
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(24))
    assert {line["task"] for line in lines} == {found["task"]}
    hits = sum(line["expected"] == line["predicted"] for line in lines)
    assert hits / 24 == found["metrics"]["accuracy"]
    assert found["confusion"]["labels"] == ["positive", "negative"]
    assert sum(found["confusion"]["counts"][i][i] for i in (0, 1)) == hits
    assert found["per_class"]["positive"]["support"] == 12
    shown = run(*args).out
    assert "precision" in shown
    assert "expected \\ predicted" in shown


def test_tags(run, bank, tmp_path):
    draw = torch.Generator().manual_seed(5)
    labels = ("O", "B-x", "I-x")
    head = Head(labels, torch.randn(3, 48, generator=draw), torch.zeros(3), per_token=True)
    bank.publish(Task("tagger", "p-tuning-v2", random_prefix(6), template="{tokens}", head=head))
    rows = [{"tokens": ["a", "bc", "d"], "tags": ["O", "B-x", "I-x"]}, {"tokens": ["e"], "tags": ["B-x"]}]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("eval", "tagger", "--data", "tags.jsonl", "--label-field", "tags", "--per-class", "--json")
    assert found.status == 0, found.err
    assert list(found.json["metrics"])[:3] == ["span_f1", "span_precision", "span_recall"]
    assert found.json["per_class"]["x"]["support"] == 2


@pytest.mark.parametrize("name", ["one", "writer"])
def test_a_blind_rating_from_sheet_to_verdict(run, bank, reviews, name):
    other = "two" if name == "one" else "base"
    args = ("eval", name, "--data", reviews, "--limit", 12, "--compare", other, "--blind", "sheet.csv", "--seed", 7)
    wrote = run(*args, "--json")
    assert wrote.status == 0, wrote.err
    assert "wrote sheet.csv for people to fill, and sheet.csv.key.json" in wrote.err
    key = json.loads(Path("sheet.csv.key.json").read_text())
    assert key["tasks"] == [wrote.json["task"], wrote.json["compare"][0]["task"]]
    with open("sheet.csv", encoding="utf-8-sig", newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header[1] == "input: text"
    better = header.index("better: A / B / tie")
    for row in rows[:8]:  # the first task is the better one in eight rows, the second in one
        row[better] = "AB"[key["rows"][row[0]].index(wrote.json["task"])]
    rows[8][better] = "AB"[key["rows"]["9"].index(key["tasks"][1])]
    for row in rows[9:]:
        row[better] = "tie"
    with open("sheet.csv", "w", encoding="utf-8-sig", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    verdict = run("eval", "--ratings", "sheet.csv", "--json").json
    assert (verdict["task"], verdict["wins"], verdict["losses"]) == (key["tasks"][0], 8, 1)
    assert (verdict["ties"], verdict["unrated"], verdict["n"]) == (3, 0, 12)
    assert verdict["p_value"] == pytest.approx(2 * 10 / 2**9)
    assert "8 wins, 1 losses, 3 ties" in run("eval", "--ratings", "sheet.csv").out
    again = run(*args, "--model", "./nowhere")  # said before the model is looked for
    assert again.status == 2
    assert "sheet.csv exists, and there may be ratings in it" in again.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("one",), "name a task and its examples"),
        (("--data", "DATA"), "name a task and its examples"),
        (("one", "--data", "DATA", "--compare", "one"), "is named twice"),
        (("one", "--data", "DATA", "--compare", "one@1"), "is named twice"),
        (("one", "--data", "DATA", "--compare", "base", "--compare", "base"), "is named twice"),
        (("one", "--data", "DATA", "--compare", "tow"), "did you mean two"),
        (("base", "--data", "DATA"), "the base model alone has no template"),
        (("one", "--data", "DATA", "--blind", "x.csv"), "--blind is for two tasks, got 1"),
        (("one", "--data", "DATA", "--seed", 1), "leave it out without --blind"),
        (("one", "--data", "DATA", "--predictions", "no/where.jsonl"), "there is no folder"),
        (("writer", "--data", "DATA", "--per-class"), "which has no classes; leave out --per-class"),
        (("--ratings", "x.csv", "--data", "DATA"), "leave out --data"),
        (("one", "--ratings", "x.csv"), "leave out NAME"),
        (("--ratings", "x.csv"), "the key x.csv.key.json is missing"),
        (
            ("static", "--data", "DATA", "--compare", "base"),
            "task 'static' is a text in front of requests and has no template",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, bank, reviews, args, said):
    bank.publish(Task("static", "static", lower_tokens(tiny_model("llama"), [1, 2]), kind="prompt", text="ab"))
    refused = run("eval", *(reviews if word == "DATA" else word for word in args))
    assert refused.status != 0
    assert said in refused.err
    assert "Traceback" not in refused.err
    assert refused.out == ""
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["home", "reviews.jsonl"]
