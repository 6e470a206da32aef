"""`Search`: sixteen variants of a prompt in one search, beside a run of each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from benchmarks import markdown, rows
from benchmarks.report import WorkloadReport
from foreword.bench.participants import OURS, Peer
from foreword.bench.record import Record
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options
from foreword.training.search.space import SearchSpace

KEY = "sst2"
FACTORY = "benchmarks.search.participant:start"
# The learning rate, which changes no run's time, comes last, so that every second variant is a fair half.
VARIED = {"length": [8, 32], "init": ["auto", "vocab"], "lr": [2e-3, 5e-3, 1e-2, 2e-2]}
HALVING, BATCH, ROWS, HELD, STEPS, WARM_UP = 4, 8, 1000, 100, 40, 2
SEQUENTIAL = Peer("sequential", "`foreword train` with each variant's settings, one run after another")


class Search(WorkloadReport):
    name = "search"
    about = (
        "Sixteen variants of P-tuning v2 on SST-2 (four learning rates, 8 and 32 virtual tokens, two starts) in one "
        f"`foreword search`, of which one in {HALVING} goes on at a rung, beside `foreword train` with each variant's "
        f"settings. {ROWS:,} rows to learn from, {HELD} held out, {BATCH} a step, float32. A time is that of a whole "
        "run or search in a process that has loaded the model: reading rows, figures before, learning, five "
        "evaluations, figures after. Half of the separate runs are timed before the search and half after it; the time "
        "of one is their mean. Seconds of the processor, of all cores, are given beside those of the clock. Separate "
        "runs win by their best held-out score, as trials do; the difference is the largest one between the winners' "
        "keys and values. What batching saves is measured inside the search, where some steps are taken one trial "
        "after another; what halving saves are the examples that were not run."
    )
    peers: ClassVar[Sequence[Peer]] = (SEQUENTIAL,)

    def cases(self, options: Options) -> list[Case]:
        sizes = {"rows": options.limit or ROWS, "held": min(HELD, options.limit or HELD), "batch_size": BATCH}
        own = {"dtype": "float32", "varied": VARIED, "halving": HALVING, "steps": options.steps or STEPS, **sizes}
        return [options.case(KEY, _measure, **own)]

    def goals(self, engine: str) -> Sequence[Goal]:
        return [
            Goal(f"{KEY}/times_one", 6.0, at_most=True),
            Goal(f"{KEY}/same_winner", 1.0),
            Goal(f"{KEY}/winner_difference", 1e-4, at_most=True),
        ]

    def ratios(self, records: Sequence[Record]) -> dict[str, float]:
        apart = [record.metrics[SEQUENTIAL.key] for record in records if SEQUENTIAL.key in record.metrics]
        return {f"{KEY}/{SEQUENTIAL.key}": each["times_faster"] for each in apart}

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        found: dict[str, float] = {}
        for record in records:
            if (apart := record.metrics.get(SEQUENTIAL.key)) is not None:
                found[f"{KEY}/times_one"] = apart["times_one"]
                found[f"{KEY}/same_winner"] = float(record.metrics["search"]["winner"] == apart["winner"])
                if apart["difference"] is not None:
                    found[f"{KEY}/winner_difference"] = apart["difference"]
        return found

    def table(self, records: Mapping[str, Record]) -> str:
        found = records[KEY].metrics
        ours, apart = found["search"], found.get(SEQUENTIAL.key)

        def row(name: str, seconds: float, times: str, winner: int, score: float) -> list[str]:
            point = ", ".join(f"{key} {value}" for key, value in found["points"][winner].items())
            return [name, f"{seconds:.0f} s", times, point, f"{score:.4f}"]

        times = markdown.MISSING
        if apart:
            times = f"**{apart['times_one']:.2f}**, {apart['cpu_times_one']:.2f} of the processor"
        shown = [row("one search of all", ours["seconds"], times, ours["winner"], ours["score"])]
        if apart:
            seconds, best = apart["seconds"], max(apart["scores"])
            shown.append(row("a run of each", sum(seconds), f"{len(seconds)}", apart["winner"], best))
        columns = ("sixteen variants", "seconds", "times one run", "winner", "its held-out score")
        return f"{markdown.table(columns, shown)}\n\n{_savings(ours['savings'])}"


def _savings(savings: Mapping[str, Any]) -> str:
    texts = [f"Halving: {savings['halving']['share_not_run']:.0%} of the examples were not run."]
    for batch in savings["batching"]:
        texts.append(f"A step of {batch['trials']} trials in one batch: {batch['times_faster']:.2f} times faster.")
    return " ".join(texts)


def _measure(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    points = list(SearchSpace.parse(VARIED).grid())
    with TemporaryDirectory() as place:
        folder = Path(place)
        given = {**settings, "recipe": _recipe(options, settings, folder)}
        files = {name: str(folder / f"{name}.safetensors") for name in (OURS, SEQUENTIAL.key)}

        def alone(worker: Worker, variant: int) -> dict[str, Any]:
            found = worker.ask("alone", variant=variant, steps=settings["steps"])
            log(f"  variant {variant} {found['point']}: {found['seconds']:.1f} s, {found['score']:.4f}")
            return found

        def search(worker: Worker) -> dict[str, Any]:
            found = worker.ask("search", steps=settings["steps"], save=files[OURS])
            log(f"  search: {found['seconds']:.1f} s, variant {found['winner']} wins with {found['score']:.4f}")
            return found

        with Worker(OURS, FACTORY, given) as ours:
            ours.ask("alone", variant=0, steps=WARM_UP)
            if SEQUENTIAL.key not in options.peers:
                return {"points": points, "search": search(ours)}
            with SEQUENTIAL.worker(FACTORY, given) as theirs:
                theirs.ask("alone", variant=0, steps=WARM_UP)
                first = [alone(theirs, variant) for variant in range(0, len(points), 2)]
                searched = search(ours)
                second = [alone(theirs, variant) for variant in range(1, len(points), 2)]
                # The winner of the search is learned once more, to be compared; that is not timed.
                theirs.ask("alone", variant=searched["winner"], steps=settings["steps"], save=files[SEQUENTIAL.key])
                difference = ours.ask("difference", one=files[OURS], other=files[SEQUENTIAL.key])
    runs = [run for pair in zip(first, second, strict=True) for run in pair]
    seconds, cpu, scores = ([run[name] for run in runs] for name in ("seconds", "cpu_seconds", "score"))
    sequential = {
        "seconds": seconds,
        "scores": scores,
        "winner": scores.index(max(scores)),
        "cpu_seconds": cpu,
        "times_one": searched["seconds"] / statistics.mean(seconds),
        "cpu_times_one": searched["cpu_seconds"] / statistics.mean(cpu),
        "times_faster": sum(seconds) / searched["seconds"],
        "difference": difference,
    }
    return {"points": points, "search": searched, SEQUENTIAL.key: sequential}


def _recipe(options: Options, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What all variants have in common; the rows are evenly spread ones of each part."""
    parts = {"data": ("train", settings["rows"]), "eval": ("dev", settings["held"])}
    chosen = {name: rows.spread_out(rows.rows(options.data, part), count) for name, (part, count) in parts.items()}
    files = {name: rows.write_jsonl(folder / f"{name}.jsonl", each) for name, each in chosen.items()}
    words = {"template": rows.TEMPLATE, "verbalizer": rows.VERBALIZER}
    return {**files, **words, "batch_size": BATCH, "seed": settings["seed"]}
