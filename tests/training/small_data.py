"""A rule that a tiny random model can learn: the last letter of the text decides."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

from foreword.training.recipe import Recipe

ANSWERS = {"a": "y", "b": "n"}


def examples(count: int, seed: int, answers: dict[str, str] = ANSWERS) -> list[dict[str, str]]:
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        letter = source.choice("ab")
        noise = "".join(source.choices("xyz", k=source.randint(1, 5)))
        rows.append({"text": noise + letter, "label": answers[letter]})
    return rows


def write_jsonl(file: Path, rows: list) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def write_csv(file: Path, rows: list[dict[str, str]]) -> str:
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


def recipe(folder: Path, **changes) -> Recipe:
    """Settings that learn `examples` in a second or two; ``folder`` gets the data."""
    files = {
        "data": write_jsonl(folder / "train.jsonl", examples(48, 1)),
        "eval": write_jsonl(folder / "eval.jsonl", examples(24, 2)),
    }
    settings = {"template": "{text}{mask}", "init": "random", "length": 16, "max_steps": 40, "lr": 0.1}
    return Recipe(**{**files, **settings, "out": str(folder / "run"), **changes})
