"""A tiny model and tiny data sets in the shape of the real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from models import byte_tokenizer, tiny_model

FILMS = ("fine", "dull")


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
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets; only what the tests read is in it."""
    folder = tmp_path_factory.mktemp("data")
    for part, count in (("train", 40), ("dev", 12), ("test", 10)):
        write(folder / "sst2" / f"{part}.jsonl", map(film, range(count)))
        write(folder / "clinc150" / f"{part}.jsonl", map(wish, range(count)))
        write(folder / "lama_trex" / f"{part}.jsonl", map(fact, range(count)))
        write(folder / "e2e_nlg" / f"{part}.jsonl", map(pub, range(count)))
        write(folder / "fewglue" / f"copa.{part}.jsonl", map(choice, range(count)))
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
