"""Many small tasks out of one data set, to try `foreword train-many` on.

Rows have a `text`, an `intent` and a `domain`: 8 intents in 3 domains in `examples/data/utterances`, 150 in 10 in
CLINC150 (Larson et al. 2019), which `--data` takes as a folder of the same form. `--by intent` makes a task an intent,
"is this it or not?", with as many rows of others as of its own; `--by domain` makes a task a domain, which of its
intents.

    python examples/many_tasks.py --out tasks
    foreword train-many tasks/train --eval tasks/dev --template 'Request: {text}\\nIs it about {topic}?{mask}'
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

Rows = list[dict[str, str]]


def read(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def by_domain(rows: Rows, count: int, source: random.Random) -> dict[str, Rows]:
    """A task a domain: ``count`` rows of each of its intents."""
    tasks: dict[str, Rows] = defaultdict(list)
    for intent, own in grouped(rows).items():
        chosen = source.sample(own, min(count, len(own)))
        tasks[own[0]["domain"]] += [{"text": row["text"], "label": intent.replace("_", " ")} for row in chosen]
    return tasks


def by_intent(rows: Rows, count: int, source: random.Random) -> dict[str, Rows]:
    """A task an intent: ``count`` rows of its own, and as many of all others."""
    tasks = {}
    for intent, own in grouped(rows).items():
        others = [row for row in rows if row["intent"] != intent]
        chosen = source.sample(own, min(count, len(own)))
        chosen += source.sample(others, min(count, len(others)))
        source.shuffle(chosen)
        topic = intent.replace("_", " ")
        tasks[intent] = [
            {"text": row["text"], "topic": topic, "label": "yes" if row["intent"] == intent else "no"} for row in chosen
        ]
    return tasks


def grouped(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = defaultdict(list)
    for row in rows:
        found[row["intent"]].append(row)
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).parent / "data/utterances",
        help="folder with train.jsonl and dev.jsonl (default: that of the examples)",
    )
    parser.add_argument("--by", choices=("intent", "domain"), default="intent", help="what a task is")
    parser.add_argument("--rows", type=int, default=24, help="training rows of every intent")
    parser.add_argument("--tasks", type=int, help="only so many tasks, evenly over all")
    parser.add_argument("--seed", type=int, default=0, help="of the rows that are drawn")
    parser.add_argument("--out", type=Path, required=True, help="gets a folder of tasks for train and for dev")
    given = parser.parse_args()
    make = by_intent if given.by == "intent" else by_domain
    for part in ("train", "dev"):
        count = given.rows if part == "train" else max(1, given.rows // 2)
        tasks = make(read(given.data / f"{part}.jsonl"), count, random.Random(given.seed))
        names = sorted(tasks)
        wanted = min(given.tasks or len(names), len(names))
        folder = given.out / part
        folder.mkdir(parents=True, exist_ok=True)
        for name in [names[place * len(names) // wanted] for place in range(wanted)]:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in tasks[name]]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder}: {wanted} tasks")


if __name__ == "__main__":
    main()
