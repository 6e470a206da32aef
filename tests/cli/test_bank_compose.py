"""``foreword bank compose``: what it publishes, what it says of every part, and what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.conftest import Run
from foreword.bank.bank import Bank

TEMPLATE = "{text} is{mask}"
WORDS = '{"positive": "y", "negative": "n"}'


@pytest.fixture
def tasks(run: Run, reviews: Path, tmp_path: Path) -> Bank:
    """Two learned tasks with a template and a text."""
    for name, seed in (("one", 1), ("two", 2)):
        learn = ("--data", reviews, "--template", TEMPLATE, "--verbalizer", WORDS, "--length", 4, "--max-steps", 4)
        made = run("train", *learn, "--seed", seed, "--out", name, "--publish", name)
        assert made.status == 0, made.err
    (tmp_path / "text.txt").write_text("Be kind. ")
    assert run("publish", "kind", "--text", "text.txt").status == 0
    return Bank(tmp_path / "home" / "bank")


def test_an_approximation_is_measured_beside_its_parts(run: Run, tasks: Bank, reviews: Path) -> None:
    made = run("bank", "compose", "kind", "one", "two", "--publish", "all", "--data", reviews, "--json")
    assert made.status == 0, made.err
    task, refs = tasks.load("all"), [tasks.load(name).ref for name in ("kind", "one", "two")]
    assert (made.json["task"], made.json["exact"], made.json["n"]) == (task.ref, False, 24)
    assert [(part["task"], part["how"]) for part in made.json["parts"]] == list(
        zip(refs, ("text", "rotated", "rotated"), strict=True)
    )
    assert list(made.json["alone"]) == refs
    # What is said is what serving gives: the stack and a learned part by themselves.
    for name, figures in (("all", made.json["metrics"]), ("two", made.json["alone"][refs[2]])):
        again = run("eval", name, "--data", reviews, "--json").json
        assert {**again["metrics"], "loss": figures["loss"]} == figures
    assert len({figures["loss"] for figures in (*made.json["alone"].values(), made.json["metrics"])}) == 4
    assert task.provenance["parents"] == refs
    assert (task.provenance["metrics"], task.provenance["alone"]) == (made.json["metrics"], made.json["alone"])
    assert run("bank", "verify").out.strip() == "everything checks"


def test_people_are_told_what_is_exact(run: Run, tasks: Bank, reviews: Path) -> None:
    exact = run("bank", "compose", "one", "kind", "--publish", "exact").out
    assert exact.count(": exact") == 2
    assert "pass --data" not in exact
    about = run("bank", "compose", "kind", "one", "--publish", "about").out
    assert "learned without what stands in front, so an approximation" in about
    assert "what that costs is unknown until it is measured: pass --data FILE" in about
    tried = run("bank", "compose", "kind", "one", "--data", reviews, "--limit", 4)
    assert tried.out.splitlines()[-1].startswith("not published (")
    assert f"{tasks.load('kind').ref} alone" in tried.out
    assert tasks.names() == ["about", "exact", "kind", "one", "two"]


def test_two_texts_are_one_text(run: Run, tasks: Bank, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Be brief. ")
    run("publish", "brief", "--text", "text.txt")
    made = run("bank", "compose", "kind", "brief", "--publish", "both", "--template", "{q}\\n{target:a}", "--json")
    assert made.json["exact"], made.err
    both = tasks.load("both")
    assert (both.kind, both.text, both.template) == ("prompt", "Be kind. Be brief. ", "{q}\n{target:a}")
    ask = ("--max-tokens", 6, "--json")
    joined = run("generate", "Be kind. Be brief. Why", *ask).json["token_ids"]
    assert run("generate", "both", "Why", *ask).json["token_ids"] == joined


def test_another_models_task_is_refused(run: Run, tasks: Bank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tiny_models import save_tiny

    monkeypatch.setenv("FOREWORD_MODEL", str(save_tiny("qwen3", tmp_path / "other")))
    refused = run("bank", "compose", "one", "two", "--publish", "both")
    assert (refused.status, "was made for another model" in refused.err) == (1, True)
    assert tasks.names() == ["kind", "one", "two"]
