"""Wrote the files of this folder. It is history: it need not run in later versions.

    PYTHONPATH=src:tests python tests/kept/write.py FOLDER

writes all of it anew into FOLDER, from random weights on. What is asked of the files is asked by functions of
``tests/test_kept_files.py``, so that the tests ask the same.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from server.running import CHATML
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig

from test_kept_files import (
    BERT,
    LLAMA,
    Server,
    answers,
    command,
    digests,
    environment,
    evaluated,
    flags,
    listed,
    routes,
)
from tiny_models import byte_tokenizer

TEMPLATE = "Review: {text}\nSentiment:{mask}"
WORDS = {"positive": " good", "negative": " evil"}
POLICY = "Lamp 3 costs 9 coins. It ships on Monday; refunds take 2 days."
SEEDED = 20260101
KEY, ADMIN, SMALL = "fw-kept-test-key-shop", "fw-kept-test-key-admin", "fw-kept-test-key-small"

# Recipes of `foreword train` by the task that they give. Those of INTERRUPTED are run twice: to the end, for the task
# in the bank, and up to a checkpoint, for the folder in runs/.
LEARN: dict[str, dict[str, Any]] = {"data": "data/reviews.jsonl", "eval": "data/held.jsonl", "batch_size": 4}
WORDED = {**LEARN, "template": TEMPLATE, "verbalizer": WORDS}
RECIPES: dict[str, dict[str, Any]] = {
    "reviews": {**WORDED, "length": 4, "max_steps": 40, "lr": 0.05, "freeze_first": True},
    "finished": {**WORDED, "length": 2, "max_steps": 1, "lr": 0.05},
    "projected": {**WORDED, "method": "prefix-tuning", "length": 4, "max_steps": 6},
    "soft": {**WORDED, "method": "prompt-tuning", "length": 4, "max_steps": 6},
    "inside": {
        **WORDED, "method": "p-tuning", "template": "{soft:2}Review: {text}{soft:2}\nSentiment:{mask}",
        "encoder": "lstm", "max_steps": 20, "lr": 0.02,
    },
    "lora": {**WORDED, "method": "lora", "rank": 2, "max_steps": 6},
    "hybrid": {**WORDED, "method": "lora-hybrid", "rank": 1, "length": 2, "max_steps": 20, "lr": 0.02},
    "pet": {
        **WORDED, "method": "pet", "template": ["{text}\nIt was{mask}", "{text} All in all{mask}"], "rank": 1,
        "unlabeled": "data/unlabeled.jsonl", "max_steps": 20,
    },
    "trigger": {
        **WORDED, "method": "autoprompt", "template": "{text}:{mask}", "length": 3, "candidates": 4, "max_steps": 8,
    },
    "manual": {**WORDED, "method": "manual", "calibrate": True},
    "members": {**WORDED, "length": 2, "members": 2, "max_steps": 6},
    "headed": {**LEARN, "template": "{text}", "head": "linear", "length": 2, "max_steps": 6},
    "writes": {**LEARN, "template": "{text} is {target:label}", "length": 4, "max_steps": 6},
    "topics": {
        **LEARN, "model": BERT, "template": "{text}", "head": "linear", "length": 3, "max_steps": 20, "lr": 0.02,
    },
    "masked": {**WORDED, "model": BERT, "method": "prompt-tuning", "length": 3, "max_steps": 6},
    "tags": {
        **LEARN, "model": BERT, "data": "data/tagged.jsonl", "eval": "data/tagged.jsonl", "template": "{tokens}",
        "label_field": "tags", "length": 2, "max_steps": 6,
    },
}  # fmt: skip
INTERRUPTED: dict[str, Callable[[Path], bool]] = {
    "reviews": lambda run: (run / "checkpoints/checkpoint-8/trainer_state.json").is_file(),
    "inside": lambda run: (run / "checkpoints/checkpoint-4/trainer_state.json").is_file(),
    "hybrid": lambda run: (run / "checkpoints/checkpoint-4/trainer_state.json").is_file(),
    "topics": lambda run: (run / "checkpoints/checkpoint-4/trainer_state.json").is_file(),
    "trigger": lambda run: (run / "state.json").is_file(),
    "pet": lambda run: (run / "pattern-1/state.json").is_file() and not (run / "pattern-1/checkpoints").exists(),
}
MANY = {
    "data": "data/users", "template": "{text}{mask}", "verbalizer": {"a": "y", "b": "n"}, "length": 2, "at_once": 2,
    "max_steps": 20, "batch_size": 4, "shared_init": True, "tasks": {"anna": {"max_steps": 8}, "ben": {"lr": 0.02}},
    "publish_prefix": "user-", "publish_all": True,
}  # fmt: skip
SEARCH = {
    **LEARN, "template": "{text} is\n{mask}", "verbalizer": WORDS, "max_steps": 20, "halving": 2, "at_once": 2,
    "search": {"lr": [1e-3, 0.1], "length": [2, 4]},
}  # fmt: skip
# Where runs that are stopped publish.
STOPPED = "stopped"
DISTILL = (
    *("--slots", 6, "--conversations", 8, "--held", 4, "--answer-tokens", 4, "--max-steps", 20, "--batch-size", 2),
    *("--lr", 0.03),
)

ASKED_OF_LLAMA = {
    "/v1/completions": {
        name: ["fine 1", "Once upon"]
        for name in (LLAMA, "7", "story", "soft", "reviews", "lora", "trigger", "stacked", "texts", "short")
    },
    "/v1/chat/completions": {name: ["What costs 9?"] for name in ("kind", "policy", "short", "writes")},
    "/v1/classify": {
        name: ["fine 1", "a poor thing"]
        for name in (
            *("reviews", "projected", "soft", "inside", "lora", "hybrid", "pet", "trigger", "manual", "members"),
            *("voted", "headed", "found", "stacked", "user-anna", "user-ben", "near-anna"),
        )
    },
}
ASKED_OF_BERT = {
    "/v1/classify": {name: ["fine 1", "a poor thing"] for name in ("topics", "masked")},
    "/v1/tag": {"tags": ["Anna met Ben", "a lamp"]},
}
EVALUATED = {"reviews": LLAMA, "inside": LLAMA, "writes": LLAMA, "topics": BERT}


def main(place: Path) -> None:
    """Everything, in an order in which each finds what it needs."""
    torch.set_num_threads(1)
    place.mkdir(parents=True)
    models(place)
    data(place)
    recipes(place)
    texts(place)
    learned(place)
    combined(place)
    finished = interrupted(place)
    served = server_files(place)
    ratings(place)
    keep(place / "expected.json", {**expected(place), "runs": finished, "secrets": served})
    clear(place)


def clear(place: Path) -> None:
    """Take away what no test reads: pictures, locks, and finished runs but one."""
    folders = (place / "home", place / "whole", place / STOPPED)
    for clutter in (*folders, *place.rglob("*.png"), *place.rglob(".locks"), *place.rglob(".trials.jsonl")):
        shutil.rmtree(clutter) if clutter.is_dir() else clutter.unlink(missing_ok=True)


def models(place: Path) -> None:
    """A Llama and a BERT of two layers; their weights are drawn once and kept."""
    torch.manual_seed(SEEDED)
    sizes = {"vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = LlamaConfig(
        **sizes, intermediate_size=32, num_key_value_heads=1, max_position_embeddings=4096, eos_token_id=256,
        bos_token_id=None, pad_token_id=257,
    )  # fmt: skip
    bert = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=128, pad_token_id=257)
    for name, auto, config in ((LLAMA, AutoModelForCausalLM, llama), (BERT, AutoModelForMaskedLM, bert)):
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
        model.save_pretrained(place / name)
        tokenizer = byte_tokenizer()
        if name == LLAMA:
            tokenizer.chat_template = CHATML
        else:
            tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.save_pretrained(place / name)


def data(place: Path) -> None:
    """Rows that are a rule: the last letter of a text decides about its label."""
    (place / "data" / "users").mkdir(parents=True)
    lines(place / "data/reviews.jsonl", rows(24, 1, ("positive", "negative")))
    lines(place / "data/held.jsonl", rows(16, 2, ("positive", "negative")))
    lines(place / "data/unlabeled.jsonl", [{"text": row["text"]} for row in rows(6, 3, ("a", "b"))])
    for seed, name in enumerate(("anna", "ben", "cleo", "dan"), 10):
        lines(place / f"data/users/{name}.jsonl", rows(12, seed, ("a", "b")))
    tagged = [
        {"tokens": ["Anna", "met", "Ben"], "tags": ["B-PER", "O", "B-PER"]},
        {"tokens": ["a", "lamp"], "tags": ["O", "O"]},
        {"tokens": ["Ben", "Miller", "left"], "tags": ["B-PER", "I-PER", "O"]},
    ]
    lines(place / "data/tagged.jsonl", tagged * 3)
    (place / "data/policy.txt").write_text(POLICY)
    (place / "data/story.txt").write_text("Once upon a time ")
    write(place / "data/prompts.json", [{"task_id": "kind", "system": "Be kind."}, {"task_id": 7, "prompt": "Seven: "}])


def rows(count: int, seed: int, labels: tuple[str, str]) -> list[dict[str, str]]:
    source = random.Random(seed)
    found = []
    for _ in range(count):
        which = source.randrange(2)
        noise = "".join(source.choices("xyz", k=source.randint(1, 5)))
        found.append({"text": noise + "ab"[which], "label": labels[which]})
    return found


def recipes(place: Path) -> None:
    (place / "recipes").mkdir()
    for name, recipe in {**RECIPES, "train-many": MANY, "search": SEARCH}.items():
        (place / f"recipes/{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def texts(place: Path) -> None:
    """Static tasks: published one by one, and from a MULTI_TASK_PROMPT file."""
    run(place, "cache", "data/prompts.json")
    run(place, "publish", "policy", "--system", "data/policy.txt")
    run(place, "publish", "story", "--text", "data/story.txt")


def learned(place: Path) -> None:
    """Every way of learning; `reviews` has three versions, of which the second is served."""
    for name in RECIPES:
        run(place, "train", f"recipes/{name}.yaml", "--out", f"whole/{name}", "--publish", name)
    for seed in (1, 2):
        more = ("--max-steps", 6, "--seed", seed, "--init", "task:reviews@1")
        run(place, "train", "recipes/reviews.yaml", *more, "--out", f"whole/reviews-{seed}", "--publish", "reviews")
    run(place, "bank", "rollback", "reviews")
    run(place, "distill", "--system", "data/policy.txt", *DISTILL, "--out", "whole/short", "--publish", "short")
    run(place, "search", "recipes/search.yaml", "--out", "whole/search", "--publish", "found")
    run(place, "train-many", "--recipe", "recipes/train-many.yaml", "--out", "whole/many")
    near = {key: value for key, value in MANY.items() if key not in ("shared_init", "tasks")}
    near |= {"data": "data/near", "shared_length": 2, "max_steps": 4, "publish_prefix": "near-"}
    (place / "data/near").mkdir()
    shutil.copy(place / "data/users/anna.jsonl", place / "data/near")
    shutil.copy(place / "data/users/ben.jsonl", place / "data/near")
    (place / "recipes/near.yaml").write_text(yaml.safe_dump(near, sort_keys=False))
    run(place, "train-many", "--recipe", "recipes/near.yaml", "--out", "whole/near")
    (place / "runs").mkdir()
    run(place, "train", "recipes/finished.yaml", "--out", "runs/finished")


def combined(place: Path) -> None:
    run(place, "bank", "compose", "story", "reviews@1", "--publish", "stacked")
    run(place, "bank", "compose", "story", "7", "--publish", "texts")
    run(place, "bank", "ensemble", "reviews@1", "reviews@2", "reviews@3", "--publish", "voted", "--vote")


def interrupted(place: Path) -> dict[str, Any]:
    """Runs that are stopped by SIGINT on their way; what the same runs came to that were not."""
    for name, due in INTERRUPTED.items():
        stop(place, ("train", f"recipes/{name}.yaml", "--out", f"runs/{name}"), due)
    # A snapshot a step, where it would be one a minute.
    eager = "import foreword.training.many.train_many as many; many.SNAPSHOT = 0.0"
    stop(place, ("train-many", "--recipe", "recipes/train-many.yaml", "--out", "runs/many"), _somebody_ended, eager)
    stop(place, ("search", "recipes/search.yaml", "--out", "runs/search"), _some_dropped)
    stop(
        place,
        ("distill", "--system", "data/policy.txt", *DISTILL, "--out", "runs/short"),
        lambda run: (run / "slots-6/checkpoints/checkpoint-4/trainer_state.json").is_file(),
    )
    found = {}
    for name in (*INTERRUPTED, "many", "search", "short"):
        found[name] = json.loads((place / f"whole/{name}/summary.json").read_text())
    found["search"]["trials"] = sorted(
        map(json.loads, (place / "whole/search/trials.jsonl").read_text().splitlines()), key=lambda each: each["number"]
    )
    return found


def _somebody_ended(run: Path) -> bool:
    ended = run / "ended-0.jsonl"
    return ended.is_file() and "learned" in ended.read_text() and (run / "live-0").is_file()


def _some_dropped(run: Path) -> bool:
    try:
        state = json.loads((run / "state.json").read_text())
    except (OSError, ValueError):
        return False
    states = [trial["state"] for trial in state["trials"]]
    return "dropped" in states and "learning" in states


def stop(place: Path, args: tuple[object, ...], due: Callable[[Path], bool], before: str = "pass") -> None:
    """Run a command up to a state of its run folder, then interrupt it.

    Args:
        before: code that is run first.
    """
    code = f"{before}; from foreword.cli import main; main()"
    out = place / str(args[args.index("--out") + 1])
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=place,
        env={**os.environ, **{key: value for key, value in environment(place, FOREWORD_BANK=STOPPED).items() if value}},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not due(out):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (out / "task").exists(), f"{out} was done already"
    print(err.strip().splitlines()[-1])


def server_files(place: Path) -> dict[str, Any]:
    """Keys with a secret that is known, and what one of them has used of its quota."""
    (place / "server").mkdir()
    keys = {KEY: ("shop", "--task", "rev*", "--task", "policy"), ADMIN: ("boss", "--admin"), SMALL: ("small",)}
    for secret, args in keys.items():
        code = f"import foreword.server.keys as keys; keys.new_key = lambda: {secret!r}"
        more = ("--tokens-per-day", "40") if secret == SMALL else ()
        subprocess.run(
            [sys.executable, "-c", f"{code}; from foreword.cli import main; main()", "key", *args, *more],
            cwd=place / "server",
            check=True,
        )
    body = {"model": "7", "prompt": "x" * 40, "max_tokens": 4, "temperature": 0}
    with Server(place, "--api-keys", "server/keys.jsonl") as server:
        assert server.ask("/v1/completions", body, SMALL)[0] == 200
        assert server.ask("/v1/completions", body, SMALL)[0] == 429
    return {"shop": KEY, "boss": ADMIN, "small": SMALL}


def ratings(place: Path) -> None:
    """A rating sheet, filled: A, B, tie and again."""
    args = (
        "reviews",
        "--compare",
        "writes",
        "--data",
        "data/held.jsonl",
        "--limit",
        6,
        "--blind",
        "server/ratings.csv",
    )
    run(place, "eval", *args)
    sheet = place / "server/ratings.csv"
    with sheet.open(encoding="utf-8-sig", newline="") as handle:
        header, *rows = csv.reader(handle)
    better = next(place for place, name in enumerate(header) if name.startswith("better"))
    for number, row in enumerate(rows):
        row[better] = ("A", "B", "tie")[number % 3]
    with sheet.open("w", encoding="utf-8-sig", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])


def expected(place: Path) -> dict[str, Any]:
    """What the files give now."""
    found: dict[str, Any] = {"listed": listed(place), "digests": digests(place), "asked": {}, "answers": {}}
    for model, asked in ((LLAMA, ASKED_OF_LLAMA), (BERT, ASKED_OF_BERT)):
        with Server(place, "--model", model) as server:
            found["asked"][model], found["answers"][model] = asked, answers(server, asked)
            found["routes"] = found.get("routes") or routes(server)
    found["flags"] = flags(place)
    found["rated"] = command(place, "eval", "--ratings", "server/ratings.csv", "--json").json
    found["evaluated"] = EVALUATED
    found["metrics"] = {name: evaluated(place, name, model) for name, model in EVALUATED.items()}
    return found


def run(place: Path, *args: object) -> None:
    done = command(place, *args)
    assert done.status == 0, (args, done.err)
    print(*args, "->", done.out.strip().splitlines()[-1])


def write(file: Path, what: object) -> None:
    file.write_text(json.dumps(what, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def keep(file: Path, what: dict[str, dict[str, Any]]) -> None:
    """JSON with a line for every key of the objects in it, so that a difference shows."""
    parts = []
    for name, part in what.items():
        inner = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in part.items()
        )
        parts.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def lines(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
