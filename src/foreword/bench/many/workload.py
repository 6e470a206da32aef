"""`Many`: a thousand published prefixes in a bounded memory, beside one that is always there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.engines import EMBEDDED, ENGINES, by_engine, key_of, sectioned
from foreword.bench.maker import MAKER
from foreword.bench.material import requests
from foreword.bench.measure import Spread, compared, interleaved
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

OURS = "foreword"
SIDE = "foreword.bench.many.side:start"
PREFIXES = 1000
RESIDENT = 64
LENGTH = 32
PROMPT_TOKENS = 32
OUTPUT_TOKENS = 16
REQUESTS = 128
CONCURRENCY = 16
ROUNDS = 5
TRAFFIC = {"uniform": 0.0, "zipf": 1.0}
COLD = "cold"
COLD_PREFIXES = 200
COLD_ROUNDS = 12
RUNNING = 8
DURING = 8
THROUGHPUT_GOAL = 0.9
STEPS_GOAL = 1.0

ONE = Peer("one_prefix", "the same engine and the same requests, all behind one prefix, which stays in memory")


@dataclass(frozen=True)
class Many:
    """See ``about``."""

    name: ClassVar[str] = "many"
    about: ClassVar[str] = (
        f"{PREFIXES:,} learned prefixes of {LENGTH} positions published in a bank on disk, and memory for {RESIDENT} "
        f"of them. {REQUESTS} requests of {PROMPT_TOKENS} tokens, {CONCURRENCY} at any time, {OUTPUT_TOKENS} greedy "
        "tokens each, through the server's own table of tasks; every request draws a task, all alike (uniform) or the "
        "k-th with a weight of 1/k (zipf). Resident bytes are those of all prefixes that anybody holds, running "
        f"requests included, at their most. cold: by how much {RUNNING} running answers are later because a request "
        "that joins them has to load its prefix from disk, beside one whose prefix is in memory, counted in their "
        "decode steps. vLLM's worker reads prefixes and bounds them by itself; what it loads and holds cannot be seen "
        "from outside, and is left out."
    )
    peers: ClassVar[Sequence[Peer]] = (ONE,)
    engines: ClassVar[Sequence[str]] = (EMBEDDED, "vllm")
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        traffic = [
            Cell(key_of(options.engine, key), {**_settings(options), "skew": skew}, partial(_traffic, options, skew))
            for key, skew in TRAFFIC.items()
        ]
        return [*traffic, Cell(key_of(options.engine, COLD), _cold_settings(options), partial(_cold, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        ratios = {
            f"{record.key}/{peer}": spread["median"]
            for record in records
            for peer, spread in record.found.get("ratios", {}).items()
        }
        limits = []
        for engine, measured in by_engine(records).items() or [(EMBEDDED, {})]:
            limits += _limits(engine, {key: record.found for key, record in measured.items()}, ratios)
        return Summary(ratios, limits)

    def tables(self, records: Sequence[Record]) -> str:
        return sectioned({engine: _table(measured) for engine, measured in by_engine(records).items()})


def _limits(engine: str, found: Mapping[str, Any], ratios: Mapping[str, float]) -> list[Limit]:
    limits = []
    for key in TRAFFIC:
        name = key_of(engine, key)
        limits.append(Limit(f"{name}/{ONE.key}", THROUGHPUT_GOAL, ratios.get(f"{name}/{ONE.key}")))
        if engine == EMBEDDED:
            share = found[key]["resident_bytes"] / found[key]["bound_bytes"] if key in found else None
            limits.append(Limit(f"{name}/resident_share_of_bound", 1.0, share, at_most=True))
    steps = found[COLD]["added_steps"]["median"] if COLD in found else None
    return [*limits, Limit(f"{key_of(engine, COLD)}/added_steps", STEPS_GOAL, steps, at_most=True)]


def _table(measured: Mapping[str, Record]) -> str:
    columns = ("traffic", "tokens/s", "behind one prefix", "times (quartiles)", "loads a round", "bytes, bound")
    rows = [_row(key, measured[key].found) for key in TRAFFIC if key in measured]
    parts = [markdown.table(columns, rows)] if rows else []
    if COLD in measured:
        parts.append(_cold_sentence(measured[COLD].found))
    return "\n\n".join(parts)


def _row(key: str, found: Mapping[str, Any]) -> list[str]:
    runs = found["runs"]
    held, bound = found.get("resident_bytes"), found["bound_bytes"] / 1e6
    one = f"{runs[ONE.key]['tokens_per_second']['median']:.4g}" if ONE.key in runs else markdown.MISSING
    return [
        key,
        f"{runs[OURS]['tokens_per_second']['median']:.4g}",
        one,
        markdown.times(found["ratios"].get(ONE.key)),
        f"{found['loads']['median']:g}" if "loads" in found else markdown.MISSING,
        f"{markdown.MISSING if held is None else f'{held / 1e6:.3g} MB'} of {bound:.3g} MB",
    ]


def _cold_sentence(found: Mapping[str, Any]) -> str:
    added, step = found["added_steps"], markdown.milliseconds(found["step_seconds"])
    return f"cold: **{added['median']:.2f}** decode steps ({added['low']:.2f} to {added['high']:.2f}) of {step}."


def _settings(options: Options) -> dict[str, Any]:
    prefixes = options.limit or PREFIXES
    resident = min(RESIDENT, max(2, prefixes // 4))
    return {
        "peers": list(options.peers),
        "model": options.model,
        "dtype": "bfloat16",
        "prefixes": prefixes,
        "resident": resident,
        "length": LENGTH,
        "requests": min(REQUESTS, prefixes),
        # What runs must fit into the bound with room to spare: a request holds its prefix whatever the bound says.
        "concurrency": min(CONCURRENCY, max(1, resident // 4)),
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "rounds": options.steps or ROUNDS,
        "seed": options.seed,
        **ENGINES[options.engine].settings(),
    }


def _cold_settings(options: Options) -> dict[str, Any]:
    usual = _settings(options)
    return {
        **usual,
        "prefixes": min(COLD_PREFIXES, usual["prefixes"]),
        "rounds": options.steps or COLD_ROUNDS,
        "running": RUNNING,
        "during": DURING,
    }


@contextmanager
def _side(options: Options, settings: Mapping[str, Any]) -> Iterator[tuple[Candidate, int]]:
    """The engine in front of a bank that goes with it, and its bound in bytes."""
    text = requests(options.data)
    with TemporaryDirectory() as bank:
        given = {**settings, "bank": bank}
        with Candidate("maker", MAKER, given) as maker:
            bound = settings["resident"] * maker.ask("publish", text=text)
            prompts = maker.ask("texts", text=text, count=settings["requests"], tokens=settings["prompt_tokens"])
        given |= {"prompts": prompts, "prefix_bytes": bound}
        with ENGINES[options.engine].candidate(OURS, SIDE, given) as side:
            yield side, bound


def _traffic(options: Options, skew: float, say: Say) -> dict[str, Any]:
    settings = _settings(options)
    names = [OURS, *options.peers]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with _side(options, settings) as (side, bound):

        def measure(name: str, turn: int) -> float:
            answer = side.ask("traffic", skew=skew if name == OURS else None, turn=turn)
            answers[name].append(answer)
            say(f"  {name}, turn {turn}: {answer['seconds']:.2f} s, {answer['loads']} loads")
            return answer["seconds"]

        seconds = interleaved(names, settings["rounds"], measure)
    found = compared(seconds, OURS)
    for name in names:
        speed = [answer["tokens"] / answer["seconds"] for answer in answers[name][1:]]
        found["runs"][name]["tokens_per_second"] = Spread.of(speed).to_json()
    ours = answers[OURS]
    seen = {
        "loads": Spread.of([answer["loads"] for answer in ours[1:]]).to_json(),
        "resident_bytes": max(answer["resident_bytes"] for answer in ours),
    }
    return {**found, **(seen if options.engine == EMBEDDED else {}), "bound_bytes": bound}


def _cold(options: Options, say: Say) -> dict[str, Any]:
    settings = _cold_settings(options)
    with _side(options, settings) as (side, _):
        rounds = [side.ask("disturbance") for _ in range(settings["rounds"] + 1)][1:]
    added = Spread.of([(each["cold"] - each["warm"]) / each["step"] for each in rounds])
    say(f"  a cold prefix adds {added.median:.2f} decode steps")
    return {
        "added_steps": added.to_json(),
        "step_seconds": Spread.of([each["step"] for each in rounds]).to_json(),
        "warm_seconds": Spread.of([each["warm"] for each in rounds]).to_json(),
        "cold_seconds": Spread.of([each["cold"] for each in rounds]).to_json(),
    }
