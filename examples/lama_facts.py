"""Facts that a model knows, and prompts that find them: manual templates, AutoPrompt and P-tuning on LAMA.

    python examples/lama_facts.py                                  # capitals and languages of 64 countries
    python examples/lama_facts.py --data LAMA --relations P36 P103 --methods p-tuning

Petroni et al. 2019 (arXiv:1909.01066) asked masked models to fill ``[X] was born in [Y] .``; AutoPrompt (Shin et al.
2020, arXiv:2010.15980) and P-tuning (Liu et al. 2021, arXiv:2103.10385) showed that learned prompts find more. A causal
model never sees what is behind the answer, so templates are cut there; it ranks the relation's answers by the
probability of the whole answer, however many tokens that has.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import foreword
from foreword.models import LanguageModel
from foreword.text.rows import read_rows

SPLITS = ("train", "dev", "test")
Facts = dict[str, list[dict[str, Any]]]


def facts(folder: Path, relation: str, limit: int | None) -> Facts:
    """Rows ``{subject, answer}`` of every split."""
    found = {}
    for split in SPLITS:
        rows = [row.values for row in read_rows(folder / f"{split}.jsonl") if row.values["relation"] == relation]
        found[split] = [{"subject": row["subject"], "answer": row["answer"]} for row in rows[:limit]]
    return found


def cut(template: str) -> tuple[str, str]:
    """What stands in front of the subject and between it and the answer in ``The capital of [X] is [Y] .``"""
    question, answer, _ = template.partition("[Y]")
    before, subject, after = question.rstrip().partition("[X]")
    if not answer or not subject:
        raise SystemExit(f"the template {template!r} does not have [X] in front of [Y].")
    return before, after


def templates(template: str) -> dict[str, str]:
    """The template of every method; the answer's words bring their own space."""
    before, after = cut(template)
    plain = f"{before}{{subject}}{after}{{mask}}"
    return {
        "manual": plain,
        "autoprompt": plain,  # its trigger goes in front
        "p-tuning": f"{{soft:3}}{before}{{subject}}{{soft:3}}{after}{{mask}}",
    }


def learn(
    lm: LanguageModel, method: str, template: str, files: dict[str, str], words: dict[str, str], steps: int | None
):
    recipe = foreword.Recipe(
        method=method,
        data=files["train"],
        eval=files["dev"],
        template=template,
        verbalizer=words,
        label_field="answer",
        max_steps=None if method == "manual" else steps,
    )
    return foreword.train(lm, recipe, name=f"lama-{method}").task


def measure(lm: LanguageModel, relation: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Share of test facts whose right answer is ranked first, by method."""
    rows = facts(Path(options.data), relation["relation"], options.limit)
    files = write(Path(options.out) / relation["relation"], rows)
    words = {answer: f" {answer}" for answer in sorted({row["answer"] for split in SPLITS for row in rows[split]})}
    usual = Counter(row["answer"] for row in rows["train"]).most_common(1)[0][0]
    found = {"majority": sum(row["answer"] == usual for row in rows["test"]) / len(rows["test"])}
    for method in options.methods:
        task = learn(lm, method, templates(relation["template"])[method], files, words, options.steps)
        with foreword.Engine(lm) as engine:
            report = foreword.evaluate(engine, task, read_rows(files["test"]), label_field="answer")
        found[method] = report.metrics["accuracy"]
    return found


def write(folder: Path, rows: Facts) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[split]]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {split: str(folder / f"{split}.jsonl") for split in SPLITS}


def main() -> None:
    options = parse()
    relations = {row.values["relation"]: row.values for row in read_rows(Path(options.data) / "relations.jsonl")}
    if unknown := set(options.relations) - set(relations):
        raise SystemExit(f"there is no relation {sorted(unknown)[0]}; choose from {', '.join(relations)}.")
    lm = foreword.load_model(options.model)
    table = {name: measure(lm, relations[name], options) for name in options.relations}
    print(shown(table, relations))


def shown(table: dict[str, dict[str, float]], relations: dict[str, dict[str, Any]]) -> str:
    columns = list(next(iter(table.values())))
    lines = [" ".join([f"{'':30}", *(f"{column:>10}" for column in columns)])]
    for name, row in table.items():
        lines.append(
            " ".join([f"{name + ' ' + relations[name]['name']:30.30}", *(f"{row[column]:10.3f}" for column in columns)])
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Manual prompts, AutoPrompt and P-tuning on LAMA facts.")
    parser.add_argument("--relations", nargs="+", default=["capital", "language"], help="see relations.jsonl")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=["manual", "autoprompt", "p-tuning"],
        default=["manual", "autoprompt", "p-tuning"],
    )
    parser.add_argument("--model", help="by default $FOREWORD_MODEL, else the built-in model")
    parser.add_argument(
        "--data",
        default=Path(__file__).parent / "data/facts",
        help="folder with relations.jsonl and the facts of train, dev and test (default: that of the examples)",
    )
    parser.add_argument("--steps", type=int, help="of learning; by default what suits the rows")
    parser.add_argument("--limit", type=int, help="facts of every split")
    parser.add_argument("--out", default="runs/lama-facts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
