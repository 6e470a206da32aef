"""`Search`: sixteen variants of a prompt in one search, beside a run of each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary
from foreword.text.rows import read_rows

OURS = "foreword"
KEY = "sst2"
SIDE = "foreword.bench.search.side:start"
# The learning rate, which changes no run's time, comes last, so that every second variant is a fair half.
VARIED = {"length": [8, 32], "init": ["auto", "vocab"], "lr": [2e-3, 5e-3, 1e-2, 2e-2]}
HALVING = 4
BATCH = 8
ROWS = 1000
HELD = 100
STEPS = 40
WARM_UP = 2
TIMES_ONE = 6.0
DIFFERENCE = 1e-4

SEQUENTIAL = Peer("sequential", "`foreword train` with each variant's settings, one run after another")


@dataclass(frozen=True)
class Search:
    """See ``about``."""

    name: ClassVar[str] = "search"
    about: ClassVar[str] = (
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
    engines: ClassVar[Sequence[str]] = ()
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [Cell(KEY, _settings(options), partial(_measure, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        found = next((record.found for record in records if record.key == KEY), {})
        apart = found.get("sequential")
        ratios = {f"{KEY}/{SEQUENTIAL.key}": apart["times_faster"]} if apart else {}
        same = found["search"]["winner"] == apart["winner"] if apart else None
        limits = [
            Limit(f"{KEY}/times_one", TIMES_ONE, apart["times_one"] if apart else None, at_most=True),
            Limit(f"{KEY}/same_winner", 1.0, None if same is None else float(same)),
            Limit(f"{KEY}/winner_difference", DIFFERENCE, apart["difference"] if apart else None, at_most=True),
        ]
        return Summary(ratios, limits)

    def tables(self, records: Sequence[Record]) -> str:
        return "\n\n".join(_table(record.found) for record in records if record.key == KEY)


def _table(found: Mapping[str, Any]) -> str:
    ours, apart = found["search"], found.get("sequential")
    points = found["points"]

    def row(name: str, seconds: float, times: str, winner: int, score: float) -> list[str]:
        point = ", ".join(f"{key} {value}" for key, value in points[winner].items())
        return [name, f"{seconds:.0f} s", times, point, f"{score:.4f}"]

    times = (
        f"**{apart['times_one']:.2f}**, {apart['cpu_times_one']:.2f} of the processor" if apart else markdown.MISSING
    )
    rows = [row("one search of all", ours["seconds"], times, ours["winner"], ours["score"])]
    if apart:
        total = sum(apart["seconds"])
        rows.append(row("a run of each", total, f"{len(apart['seconds'])}", apart["winner"], max(apart["scores"])))
    columns = ("sixteen variants", "seconds", "times one run", "winner", "its held-out score")
    return f"{markdown.table(columns, rows)}\n\n{_savings(ours['savings'])}"


def _savings(savings: Mapping[str, Any]) -> str:
    spared, batching = savings["halving"], savings["batching"]
    said = [f"Halving: {spared['share_not_run']:.0%} of the examples were not run."]
    said += [f"A step of {b['trials']} trials in one batch: {b['times_faster']:.2f} times faster." for b in batching]
    return " ".join(said)


def _settings(options: Options) -> dict[str, Any]:
    return {
        "peers": list(options.peers),
        "model": options.model,
        "dtype": "float32",
        "varied": VARIED,
        "halving": HALVING,
        "steps": options.steps or STEPS,
        "batch_size": BATCH,
        "rows": options.limit or ROWS,
        "held": min(HELD, options.limit or HELD),
        "seed": options.seed,
    }


def _measure(options: Options, say: Say) -> dict[str, Any]:
    settings = _settings(options)
    with TemporaryDirectory() as folder:
        given = {**settings, "recipe": _recipe(options, settings, Path(folder))}
        files = {name: str(Path(folder) / f"{name}.safetensors") for name in (OURS, SEQUENTIAL.key)}
        with Candidate(OURS, SIDE, given) as ours:
            ours.ask("alone", variant=0, steps=WARM_UP)
            if SEQUENTIAL.key not in options.peers:
                return {"points": _points(), "search": _searched(ours, settings, files, say)}
            with Candidate(SEQUENTIAL.key, SIDE, given) as theirs:
                theirs.ask("alone", variant=0, steps=WARM_UP)
                first = [_alone(theirs, variant, settings, say) for variant in range(0, len(_points()), 2)]
                searched = _searched(ours, settings, files, say)
                second = [_alone(theirs, variant, settings, say) for variant in range(1, len(_points()), 2)]
                runs = [run for pair in zip(first, second, strict=True) for run in pair]
                scores = [run["score"] for run in runs]
                # The winner of the separate runs is learned once more, to be compared; that is not timed.
                theirs.ask("alone", variant=searched["winner"], steps=settings["steps"], save=files[SEQUENTIAL.key])
                difference = ours.ask("difference", one=files[OURS], other=files[SEQUENTIAL.key])
    seconds, cpu = [run["seconds"] for run in runs], [run["cpu_seconds"] for run in runs]
    return {
        "points": _points(),
        "search": searched,
        "sequential": {
            "seconds": seconds,
            "scores": scores,
            "winner": scores.index(max(scores)),
            "cpu_seconds": cpu,
            "times_one": searched["seconds"] / statistics.mean(seconds),
            "cpu_times_one": searched["cpu_seconds"] / statistics.mean(cpu),
            "times_faster": sum(seconds) / searched["seconds"],
            "difference": difference,
        },
    }


def _searched(side: Candidate, settings: Mapping[str, Any], files: Mapping[str, str], say: Say) -> dict[str, Any]:
    found = side.ask("search", steps=settings["steps"], save=files[OURS])
    say(f"  search: {found['seconds']:.1f} s, variant {found['winner']} wins with {found['score']:.4f}")
    return found


def _alone(side: Candidate, variant: int, settings: Mapping[str, Any], say: Say) -> dict[str, Any]:
    found = side.ask("alone", variant=variant, steps=settings["steps"])
    say(f"  variant {variant} {found['point']}: {found['seconds']:.1f} s, {found['score']:.4f}")
    return found


def _points() -> list[dict[str, Any]]:
    from foreword.training.search.space import SearchSpace

    return list(SearchSpace.parse(VARIED).grid())


def _recipe(options: Options, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What all variants have in common; the rows are evenly spread ones of each part."""
    files = {}
    for name, part, count in (("data", "train", settings["rows"]), ("eval", "dev", settings["held"])):
        rows = [row.values for row in read_rows(options.data / "sst2" / f"{part}.jsonl")]
        kept = rows if len(rows) <= count else [rows[place * len(rows) // count] for place in range(count)]
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        files[name] = str(file)
    words = {"positive": " great", "negative": " bad"}
    template = "Review: {text}\nSentiment:{mask}"
    return {**files, "template": template, "verbalizer": words, "batch_size": BATCH, "seed": settings["seed"]}
