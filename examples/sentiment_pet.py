"""Sentiment from a few labelled rows with PET, in English or Chinese (Schick and Schütze 2021, arXiv:2001.07676).

    python examples/sentiment_pet.py                      # reviews that come with Foreword
    python examples/sentiment_pet.py --language zh        # 中文评论
    python examples/sentiment_pet.py --data FOLDER        # train.jsonl and test.jsonl of your own, with text and label

A pattern turns a review into a text with a gap, and a verbalizer says which word in the gap means which label, so the
model already knows something about the task. Every pattern learns a LoRA from the few labelled rows; together they
label rows that have no label, and what they agree on teaches the LoRA that is published.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import foreword
from foreword.samples import sample
from foreword.text.rows import Row, read_rows


@dataclass(frozen=True)
class Language:
    """The patterns, the word of every label, and a review to ask about."""

    patterns: tuple[str, ...]
    words: dict[str, str]
    review: str


LANGUAGES = {
    "en": Language(
        patterns=("{text} It was{mask}", "{text} All in all, the film was{mask}", "Review: {text}\nIn a word:{mask}"),
        words={"positive": " great", "negative": " terrible"},
        review="two hours that i will never get back",
    ),
    "zh": Language(
        patterns=("{text}\n总的来说，{mask}", "{text}\n我觉得{mask}", "评论：{text}\n评价：{mask}"),
        words={"positive": "很好", "negative": "很差"},
        review="送货很快，包装完好，用起来也很顺手。",
    ),
}


def few(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """``count`` rows, as many of each label."""
    labels = sorted({row.values["label"] for row in rows})
    source, chosen = random.Random(seed), []
    for label in labels:
        chosen += source.sample([row for row in rows if row.values["label"] == label], count // len(labels))
    return chosen


def write(file: Path, rows: Sequence[Row], *fields: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({name: row.values[name] for name in fields}, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def recipe(language: Language, options: argparse.Namespace) -> foreword.Recipe:
    """Labelled rows, others to choose the best checkpoint on, and rows whose labels are thrown away."""
    rows = short(options, "train")
    labelled = few(rows, options.labelled, options.seed)
    others = [row for row in rows if row not in labelled]
    folder = Path(options.out) / options.language
    return foreword.Recipe(
        method="pet",
        data=write(folder / "labelled.jsonl", labelled, "text", "label"),
        eval=write(folder / "held_out.jsonl", few(others, options.labelled, options.seed), "text", "label"),
        unlabeled=write(folder / "unlabeled.jsonl", others[-options.unlabeled :], "text"),
        template=language.patterns,
        verbalizer=language.words,
        max_steps=options.steps,
        seed=options.seed,
    )


def short(options: argparse.Namespace, split: str) -> list[Row]:
    """Rows that are not too long for a small machine; without ``--data``, a quarter of the sample is for the test."""
    if options.data is not None:
        rows = read_rows(Path(options.data) / f"{split}.jsonl")
    else:
        lines = sample("reviews", options.language).splitlines()
        rows = [Row(json.loads(line), f"sample reviews line {number}") for number, line in enumerate(lines, 1)]
        cut = len(rows) * 3 // 4
        rows = rows[:cut] if split == "train" else rows[cut:]
    return [row for row in rows if len(row.values["text"]) <= options.characters]


def main() -> None:
    options = parse()
    language = LANGUAGES[options.language]
    lm = foreword.load_model(options.model)
    task = foreword.train(lm, recipe(language, options), name=f"sentiment-{options.language}").task
    task = foreword.Bank(options.bank or Path(options.out) / "bank").publish(task, replace=True)
    test = few(short(options, "test"), options.limit, options.seed)
    with foreword.Engine(lm) as engine:
        before = foreword.evaluate(engine, replace(task, adapter=None), test).metrics["accuracy"]
        after = foreword.evaluate(engine, task, test).metrics["accuracy"]
    print(f"accuracy on {len(test)} test reviews: {before:.3f} from the pattern alone, {after:.3f} with PET")
    print(f"published {task.ref}; foreword classify {task.name} '{language.review}'")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sentiment from a few labelled rows with PET.")
    parser.add_argument("--language", choices=LANGUAGES, default="en")
    parser.add_argument("--model", help="by default $FOREWORD_MODEL, else the built-in model")
    parser.add_argument("--data", help="folder with train.jsonl and test.jsonl; by default the sample reviews")
    parser.add_argument(
        "--labelled", type=int, default=32, help="rows to learn from, and as many to choose the best on"
    )
    parser.add_argument("--unlabeled", type=int, default=300, help="rows without labels")
    parser.add_argument("--characters", type=int, default=100, help="longest review")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of every pattern, and of the last run")
    parser.add_argument("--limit", type=int, default=300, help="test reviews")
    parser.add_argument("--out", default="runs/sentiment-pet")
    parser.add_argument("--bank", help="by default in --out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
