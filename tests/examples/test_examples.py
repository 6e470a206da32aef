"""The other examples, on tiny models and a handful of rows: they run from their files to what they print."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.conftest import EXAMPLES, Load
from foreword.bank.bank import Bank
from foreword.cli import main as cli_main
from foreword.core import Task
from foreword.interop.export import export_peft
from foreword.prompts.lower import lower_tokens
from tiny_models import save_tiny, tiny_model

REVIEWS = [{"text": text, "label": label} for text, label in (("good", "positive"), ("bad", "negative"))] * 6
FACTS = [
    {"relation": "P36", "subject": subject, "answer": answer}
    for subject, answer in (("France", "Paris"), ("Peru", "Lima"), ("Italy", "Rome"), ("Mali", "Bamako"))
]
TABLES = [{"mr": f"name[{name}], area[city]", "references": [f"{name} is in the city.", name]} for name in "ABCDEF"]
SLOTS = [{"tokens": ["play", band], "tags": ["O", "B-artist"], "intent": "play"} for band in "ABCDEF"]
RELATION = {"relation": "P36", "name": "capital", "template": "The capital of [X] is [Y] ."}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the files and fields of the examples' data, and a few rows each."""
    folder = tmp_path_factory.mktemp("data")
    sets = {"reviews": REVIEWS, "facts": FACTS, "tables": TABLES, "slots": SLOTS}
    files = {f"{name}/{split}": rows for name, rows in sets.items() for split in ("train", "dev", "test")}
    for name, rows in {**files, "facts/relations": [RELATION]}.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def main(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """An example's ``main`` as a command in an empty folder; gives what it wrote to stdout."""
    monkeypatch.chdir(tmp_path)

    def main(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        load(name).main()
        return capsys.readouterr().out

    return main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """``foreword ARGUMENTS... --json`` in an empty folder; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["foreword", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli_main()
        found = capsys.readouterr()
        assert ended.value.code in (0, None), found.err
        return json.loads(found.out)

    return command


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sentiment_with_pet(main, data, tiny_llama, tmp_path, language):
    sizes = ("--labelled", 4, "--unlabeled", 4, "--limit", 4, "--steps", 2)
    printed = main(
        "sentiment_pet.py", "--language", language, "--model", tiny_llama, "--data", data / "reviews", *sizes
    )
    assert "accuracy on 4 test reviews" in printed
    task = Bank(tmp_path / "runs/sentiment-pet/bank").load(f"sentiment-{language}")
    assert task.method == "pet"
    assert task.adapter is not None


def test_lama_facts(main, data, tiny_llama):
    printed = main("lama_facts.py", "--relations", "P36", "--model", tiny_llama, "--data", data / "facts", "--steps", 2)
    head, row = printed.splitlines()
    assert head.split() == ["majority", "manual", "autoprompt", "p-tuning"]
    assert row.startswith("P36 capital")
    assert len(row.split()) == 6


def test_a_template_is_cut_behind_its_answer(load):
    lama = load("lama_facts.py")
    assert lama.cut("[X] is affiliated with the [Y] religion .") == ("", " is affiliated with the")
    assert lama.templates("The capital of [X] is [Y] .")["p-tuning"] == (
        "{soft:3}The capital of {subject}{soft:3} is{mask}"
    )
    with pytest.raises(SystemExit, match="does not have"):
        lama.cut("[Y] is the capital of [X] .")


def test_table_to_text(command, data, tiny_llama, tmp_path):
    files = ("--data", data / "tables/train.jsonl", "--eval", data / "tables/dev.jsonl")
    place = ("--model", tiny_llama, "--bank", tmp_path / "bank")
    recipe = EXAMPLES / "table_to_text.yaml"
    learned = command("train", recipe, *files, "--max-steps", 2, *place)
    assert "bleu" in learned["metrics"]
    assert Bank(tmp_path / "bank").load("restaurants").method == "prefix-tuning"


def test_slot_filling(command, data, tmp_path):
    files = ("--data", data / "slots/train.jsonl", "--eval", data / "slots/dev.jsonl")
    place = ("--model", save_tiny("bert", tmp_path / "bert"), "--bank", tmp_path / "bank")
    learned = command("train", EXAMPLES / "slot_filling.yaml", *files, "--max-steps", 2, *place)
    assert "span_f1" in learned["metrics"]
    task = Bank(tmp_path / "bank").load("slots")
    assert task.head is not None
    assert task.head.per_token


def test_rtp_multi_task(run, tiny_llama, tmp_path, monkeypatch):
    lm = tiny_model("llama")
    monkeypatch.setenv("FOREWORD_MODEL", str(tiny_llama))
    monkeypatch.delenv("PTUNING_PATH", raising=False)
    alone = [ast.literal_eval(line) for line in run("rtp_multi_task.py").splitlines()]
    export_peft(lm, Task("p", "static", lower_tokens(lm, range(60, 70))), tmp_path / "prefix")
    monkeypatch.setenv("PTUNING_PATH", str(tmp_path / "prefix"))
    behind = [ast.literal_eval(line) for line in run("rtp_multi_task.py").splitlines()]
    assert all(len(answers) == 1 for answers in (*alone, *behind))
    assert alone[-1] != behind[-1], "the learned prefix made no difference"


def test_examples_need_no_files_but_their_own(main, tiny_llama, command, tmp_path, monkeypatch):
    """Every default names data that come with the checkout or the package."""
    printed = main("sentiment_pet.py", "--model", tiny_llama, "--labelled", 4, "--limit", 4, "--steps", 1)
    assert "accuracy on 4 test reviews" in printed
    assert len(main("lama_facts.py", "--model", tiny_llama, "--methods", "manual").splitlines()) == 3
    main("many_tasks.py", "--out", tmp_path / "tasks")
    assert len(list((tmp_path / "tasks/train").iterdir())) == 8
    monkeypatch.chdir(EXAMPLES.parent)
    place = ("--model", tiny_llama, "--bank", tmp_path / "bank", "--out", tmp_path / "run", "--batch-size", 2)
    command("train", EXAMPLES / "table_to_text.yaml", *place, "--max-steps", 1)
    bert = ("--model", save_tiny("bert", tmp_path / "bert"), "--bank", tmp_path / "bank", "--out", tmp_path / "slots")
    command("train", EXAMPLES / "slot_filling.yaml", *bert, "--max-steps", 1)
