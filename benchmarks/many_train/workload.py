"""`ManyTrain`: examples a second of many users' prefixes that learn together, beside one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from safetensors.torch import load_file

from benchmarks import markdown, rows
from benchmarks.report import WorkloadReport
from foreword.bench.participants import OURS, Peer
from foreword.bench.record import Record
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options, interleaved, spread, times_better

SPEED, SAME = "speed", "same"
USERS, ROWS, BATCH, LENGTH = 32, 64, 2, 32
ROUNDS, STEPS = 6, 10
# Steps that the schedule of those is for, as in the shortest default run.
RUN = 60
# More than are run, so that no evaluation falls into a step that is timed.
ENDLESS = 1000
SEQUENTIAL = Peer(
    "sequential", "the same runs, batches, losses and optimizers in the same code, a step of one user after another's"
)
RATIO = f"{SEQUENTIAL.key}/examples_per_second"


class ManyTrain(WorkloadReport):
    name = "many-train"
    about = (
        "One training step of 32 users' prefixes (P-tuning v2, 32 virtual tokens), each on two of the user's own 64 "
        "rows of SST-2: forward, backward, clipping and AdamW. Speed in bfloat16, each side in a process of its own "
        "and taking turns. That both learn the same is seen in float32: the largest difference of any number of any "
        "prefix after the first 10 steps of a run of 60, which are beyond its warm-up."
    )
    peers: ClassVar[Sequence[Peer]] = (SEQUENTIAL,)

    def cases(self, options: Options) -> list[Case]:
        words = {"template": rows.TEMPLATE, "verbalizer": rows.VERBALIZER}
        sizes = {"length": LENGTH, "users": options.limit or USERS, "rows": ROWS, "batch_size": BATCH}
        own = {"method": "p-tuning-v2", **words, **sizes}
        speed = options.case(SPEED, _speed, **own, rounds=options.steps or ROUNDS)
        return [speed, options.case(SAME, _same, **own, steps=options.steps or STEPS)]

    def goals(self, engine: str) -> Sequence[Goal]:
        return [Goal(f"{SPEED}/{RATIO}", 2.5), Goal(f"{SAME}/{SEQUENTIAL.key}/difference", 1e-4, at_most=True)]

    def ratios(self, records: Sequence[Record]) -> dict[str, float]:
        faster = [record.metrics["ratios"].get(SEQUENTIAL.key) for record in records if record.key == SPEED]
        return {f"{SPEED}/{RATIO}": each["median"] for each in faster if each}

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        apart = [record.metrics["difference"] for record in records if record.key == SAME]
        return {f"{SAME}/{SEQUENTIAL.key}/difference": each for each in apart if each is not None}

    def table(self, records: Mapping[str, Record]) -> str:
        apart = records[SAME].metrics["difference"] if SAME in records else None
        found = [_row(records[SPEED], apart)] if SPEED in records else []
        columns = ("users", "examples each", "examples/s", "one after another", "times faster (quartiles)")
        return markdown.table((*columns, "prefixes apart"), found, words=0)


def _row(record: Record, apart: float | None) -> list[str]:
    speeds = {name: f"{run['examples_per_second']['median']:.1f}" for name, run in record.metrics["runs"].items()}
    times = markdown.times(record.metrics["ratios"].get(SEQUENTIAL.key), ".2f", "-")
    sizes = [str(record.settings["users"]), str(record.settings["batch_size"])]
    return [*sizes, speeds[OURS], speeds.get(SEQUENTIAL.key, "-"), times, markdown.number(apart, ".1e")]


def write_users(data: Path, settings: Mapping[str, Any], folder: Path) -> Path:
    """A file of rows for every user; a small data set has not enough for all, so that some see the same rows."""
    every, users = rows.rows(data), folder / "users"
    users.mkdir()
    for user in range(settings["users"]):
        own = [every[(user * settings["rows"] + place) % len(every)] for place in range(settings["rows"])]
        rows.write_jsonl(users / f"u{user:02d}.jsonl", [{"text": row["text"], "label": row["label"]} for row in own])
    return users


def _worker(name: str, settings: Mapping[str, Any], users: Path, dtype: str, max_steps: int) -> Worker:
    given = {**settings, "users": str(users), "dtype": dtype, "max_steps": max_steps, "together": name == OURS}
    return Worker(name, "benchmarks.many_train.participant:start", given)


def _speed(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Examples a second of both, taking turns."""
    examples, names = settings["users"] * settings["batch_size"], (OURS, *settings["peers"])
    with TemporaryDirectory() as folder, ExitStack() as stack:
        users = write_users(options.data, settings, Path(folder))
        workers = {name: stack.enter_context(_worker(name, settings, users, "bfloat16", ENDLESS)) for name in names}
        seconds = interleaved(names, settings["rounds"], lambda name, _: workers[name].ask("step"))
    runs = {name: {"examples_per_second": spread([examples / s for s in each])} for name, each in seconds.items()}
    for name, run in runs.items():
        log(f"  {name}: {run['examples_per_second']['median']:.2f} examples/s")
    return {"runs": runs, "ratios": {name: times_better(seconds[OURS], seconds[name]) for name in names[1:]}}


def _same(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """The largest difference between any two numbers that should be the same; ``None`` without a peer.

    Nothing is timed here, so there are no turns: only one is in memory at a time.
    """
    if not settings["peers"]:
        return {"difference": None}
    learned = {}
    with TemporaryDirectory() as folder:
        users = write_users(options.data, settings, Path(folder))
        for name in (OURS, *settings["peers"]):
            file = Path(folder) / f"{name}.safetensors"
            with _worker(name, settings, users, "float32", RUN) as worker:
                for _ in range(settings["steps"]):
                    worker.ask("step")
                worker.ask("save", path=str(file))
            learned[name] = load_file(file)
    ours = learned.pop(OURS)
    apart = max(float((ours[key] - other[key]).abs().max()) for other in learned.values() for key in ours)
    log(f"  prefixes are {apart:.1e} apart after {settings['steps']} steps of float32")
    return {"difference": apart}
