"""What a user meets at a prompt or in a notebook is a few lines, and never a tensor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import foreword
from foreword.api.results import Classification, Generation, Tagging, TokenUsage
from foreword.core.overview import Overview
from foreword.evaluation.report import Report
from foreword.prompts.compose import Composition
from foreword.training.distillation.distill import DistillResult
from foreword.training.many.report import MultiTaskReport
from foreword.training.search.search import SearchResult
from foreword.training.train import TrainResult


def objects(engine, lm) -> dict[str, Any]:
    task = engine.bank.load("mood")
    run = {"metrics": {"accuracy": 0.9}, "before": {"accuracy": 0.5}, "trained_parameters": 12, "folder": Path("run")}
    trial = SimpleNamespace(params={"lr": 0.1})
    record = {"task": "anna", "status": "learned", "metrics": {"accuracy": 0.9}, "metrics_before": {"accuracy": 0.5}}
    distilled = SimpleNamespace(gap_closed=0.8, n=9, bytes_ratio=7.0)
    return {
        "task": task,
        "prefix": task.prefix,
        "model": lm,
        "bank": engine.bank,
        "engine": engine,
        "answer": engine.generate("Once", max_tokens=2),
        "label": Classification("good", {"good": 0.9, "bad": 0.1}),
        "tags": Tagging(("play", "jazz"), ("O", "B-genre"), (0.9, 0.8)),
        "trained": TrainResult(task=task, n=10, **run),
        "searched": SearchResult(
            task=task, n=10, recipe=None, winner=trial, trials=[trial], savings={}, seconds=1.0, **run
        ),
        "distilled": DistillResult(task, distilled, "text", 9, 99, Path("run")),
        "many": MultiTaskReport([{**record, "published": "anna@0001-0123456789ab", "better": True}]),
        "composed": Composition(task, ()),
        "measured": Report(2, {"accuracy": 0.5}, []),
    }


NAMES = ["task", "prefix", "model", "bank", "engine", "answer", "label", "tags", "trained", "searched", "distilled"]
NAMES += ["many", "composed", "measured"]


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_a_few_lines(engine, lm, name: str):
    found = objects(engine, lm)[name]
    text, html = repr(found), found._repr_html_()
    assert len(text.splitlines()) <= 10
    assert max(map(len, text.splitlines())) <= 150
    assert "tensor(" not in text + html
    assert html.startswith("<b>")
    assert html.count("<tr>") >= 1


def test_what_they_say(engine):
    text = repr(engine.bank.load("mood"))
    assert text.startswith("Task 'mood@0001-")
    assert "good, bad" in text
    assert "5 positions" in text
    assert repr(engine.bank) == f"Bank({engine.bank.location!r})"
    assert repr(Classification("good", {"good": 0.9, "bad": 0.1})) == "Classification('good', 0.900)"


def test_a_generation_shows_its_text_and_its_tool_calls():
    calls = ({"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},)
    answer = Generation("", "tool_calls", TokenUsage(3, 2, 1), "base", tool_calls=calls)
    assert "weather" in repr(answer)
    assert answer.message == {"role": "assistant", "content": None, "tool_calls": list(map(dict, calls))}


def test_text_of_a_prompt_is_shortened_and_escaped():
    overview = Overview("A <b>", {"text": "<script>\n" + "x" * 500, "nothing": None, "empty": ""})
    lines = str(overview).splitlines()
    assert len(lines) == 2
    assert len(lines[1]) < 120
    assert "<script>" not in overview.to_html()
    assert "A &lt;b&gt;" in overview.to_html()
    assert "nothing" not in overview.to_html()


def test_tensors_of_parts_are_not_shown(engine):
    task = engine.bank.load("slots")
    assert task.head is not None
    assert "tensor(" not in repr(task.head) + repr(task)


def test_a_recipe_shows_what_it_sets():
    assert repr(foreword.Recipe(data="rows.jsonl", lr=0.1)) == "Recipe(data='rows.jsonl', lr=0.1)"
