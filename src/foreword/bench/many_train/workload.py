"""`ManyTrain`: examples a second of many users' prefixes that learn together, beside one after another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from safetensors.torch import load_file

from foreword.bench.candidate import Candidate
from foreword.bench.measure import Spread, interleaved, times_better
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary
from foreword.text.rows import read_rows

OURS = "foreword"
METHOD = "p-tuning-v2"
SPEED, SAME = "speed", "same"
USERS = 32
ROWS = 64
BATCH = 2
LENGTH = 32
TEMPLATE = "Review: {text}\nSentiment:{mask}"
VERBALIZER = {"positive": " great", "negative": " bad"}
ROUNDS = 6
STEPS = 10
# Steps that the schedule of those is for, as in the shortest default run.
RUN = 60
FASTER = 2.5
APART = 1e-4
# More than are run, so that no evaluation falls into a step that is timed.
ENDLESS = 1000

SEQUENTIAL = Peer(
    "sequential", "the same runs, batches, losses and optimizers in the same code, a step of one user after another's"
)


@dataclass(frozen=True)
class ManyTrain:
    """See ``about``."""

    name: ClassVar[str] = "many-train"
    about: ClassVar[str] = (
        "One training step of 32 users' prefixes (P-tuning v2, 32 virtual tokens), each on two of the user's own 64 "
        "rows of SST-2: forward, backward, clipping and AdamW. Speed in bfloat16, each side in a process of its own "
        "and taking turns. That both learn the same is seen in float32: the largest difference of any number of any "
        "prefix after the first 10 steps of a run of 60, which are beyond its warm-up."
    )
    peers: ClassVar[Sequence[Peer]] = (SEQUENTIAL,)
    engines: ClassVar[Sequence[str]] = ()
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [
            Cell(SPEED, _settings(options, {"rounds": options.steps or ROUNDS}), partial(_speed, options)),
            Cell(SAME, _settings(options, {"steps": options.steps or STEPS}), partial(_same, options)),
        ]

    def summary(self, records: Sequence[Record]) -> Summary:
        faster, apart = _faster(records), _apart(records)
        ratios = {"speed/sequential/examples_per_second": faster["median"]} if faster is not None else {}
        limits = [
            Limit("speed/sequential/examples_per_second", FASTER, faster["median"] if faster is not None else None),
            Limit("same/sequential/difference", APART, apart, at_most=True),
        ]
        return Summary(ratios, limits)

    def tables(self, records: Sequence[Record]) -> str:
        head = "| users | examples each | examples/s | one after another | times faster (quartiles) | prefixes apart |"
        rows = [_row(record, _apart(records)) for record in records if record.key == SPEED]
        return "\n".join([head, "|--:|--:|--:|--:|--:|--:|", *rows])


def _faster(records: Sequence[Record]) -> Mapping[str, float] | None:
    return next((r.found["ratios"].get("sequential") for r in records if r.key == SPEED), None)


def _apart(records: Sequence[Record]) -> float | None:
    return next((r.found["difference"] for r in records if r.key == SAME), None)


def _row(record: Record, apart: float | None) -> str:
    runs, ratio = record.found["runs"], record.found["ratios"].get("sequential")
    theirs = runs.get("sequential")
    cells = [
        str(record.settings["users"]),
        str(record.settings["batch_size"]),
        f"{runs[OURS]['examples_per_second']['median']:.1f}",
        f"{theirs['examples_per_second']['median']:.1f}" if theirs else "-",
        f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-",
        f"{apart:.1e}" if apart is not None else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _settings(options: Options, own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "peers": list(options.peers),
        "model": options.model,
        "method": METHOD,
        "template": TEMPLATE,
        "verbalizer": VERBALIZER,
        "length": LENGTH,
        "users": options.limit or USERS,
        "rows": ROWS,
        "batch_size": BATCH,
        "seed": options.seed,
        **own,
    }


def _users(options: Options, settings: Mapping[str, Any], folder: Path) -> Path:
    """A file of rows for every user."""
    rows = read_rows(options.data / "sst2" / "train.jsonl")
    users = folder / "users"
    users.mkdir()
    for user in range(settings["users"]):
        # A small file has not enough for all, so that some see the same rows.
        own = [rows[(user * settings["rows"] + place) % len(rows)].values for place in range(settings["rows"])]
        text = "".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in own)
        (users / f"u{user:02d}.jsonl").write_text(text, encoding="utf-8")
    return users


def _side(name: str, settings: Mapping[str, Any], users: Path, dtype: str, max_steps: int) -> Candidate:
    given = {**settings, "users": str(users), "dtype": dtype, "max_steps": max_steps, "together": name == OURS}
    return Candidate(name, "foreword.bench.many_train.side:start", given)


def _speed(options: Options, say: Say) -> dict[str, Any]:
    """Examples a second of both sides, taking turns."""
    settings = _settings(options, {"rounds": options.steps or ROUNDS})
    examples = settings["users"] * settings["batch_size"]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        users = _users(options, settings, Path(folder))
        names = (OURS, *settings["peers"])
        sides = {name: stack.enter_context(_side(name, settings, users, "bfloat16", ENDLESS)) for name in names}
        seconds = interleaved(names, settings["rounds"], lambda name, _: sides[name].ask("step")["seconds"])
    runs = {
        name: {"examples_per_second": Spread.of([examples / each for each in figures]).to_json()}
        for name, figures in seconds.items()
    }
    for name, found in runs.items():
        say(f"  {name}: {found['examples_per_second']['median']:.2f} examples/s")
    ratios = {name: times_better(seconds[OURS], figures).to_json() for name, figures in seconds.items() if name != OURS}
    return {"runs": runs, "ratios": ratios}


def _same(options: Options, say: Say) -> dict[str, Any]:
    """The largest difference between any two numbers that should be the same; ``None`` without a peer.

    Nothing is timed here, so the sides take no turns: only one is in memory at a time.
    """
    settings = _settings(options, {"steps": options.steps or STEPS})
    if not settings["peers"]:
        return {"difference": None}
    learned = {}
    with TemporaryDirectory() as folder:
        users = _users(options, settings, Path(folder))
        for name in (OURS, *settings["peers"]):
            file = Path(folder) / f"{name}.safetensors"
            with _side(name, settings, users, "float32", RUN) as side:
                for _ in range(settings["steps"]):
                    side.ask("step")
                side.ask("save", path=str(file))
            learned[name] = load_file(file)
    ours = learned.pop(OURS)
    apart = max(float((ours[key] - other[key]).abs().max()) for other in learned.values() for key in ours)
    say(f"  prefixes are {apart:.1e} apart after {settings['steps']} steps of float32")
    return {"difference": apart}
