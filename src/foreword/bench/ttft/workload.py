"""`Ttft`: time to the first token behind a policy that is published, beside sending it along."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.material import policy, requests
from foreword.bench.measure import Spread, compared, interleaved, times_better
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

OURS = "foreword"
SIDE = "foreword.bench.ttft.side:start"
POLICY = "tau2_retail"
POLICY_TOKENS = 1000
QUESTION_TOKENS = 32
ROUNDS = 8
STARTS = 5
WARM = 5
CONCURRENCY = {"warm/1": 1, "warm/8": 8}
COLD = "cold"
WARM_GOAL = 15.0
COLD_GOAL = 1.3

UNCACHED = Peer("uncached", "the same engine in the same process, the policy sent along and nothing of it reused")
VLLM = Peer("vllm", "vLLM with automatic prefix caching", awaits="vLLM engine")


@dataclass(frozen=True)
class Ttft:
    """See ``about``."""

    name: ClassVar[str] = "ttft"
    about: ClassVar[str] = (
        f"Time to the first token of a question of {QUESTION_TOKENS} tokens behind a policy of {POLICY_TOKENS:,}, from "
        "the text of the question to the token, tokenizing and the look-up of the task included. warm: the policy is "
        "published and in memory, one question alone or eight at once (their mean). cold: the first request of a fresh "
        "process whose engine is ready and whose bank, on disk, has not been read; beside the median of "
        f"{WARM} requests after it."
    )
    peers: ClassVar[Sequence[Peer]] = (UNCACHED, VLLM)
    engines: ClassVar[Sequence[str]] = ("embedded",)
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        warm = [
            Cell(key, _settings(options, ROUNDS), partial(_warm, options, concurrency))
            for key, concurrency in CONCURRENCY.items()
        ]
        return [*warm, Cell(COLD, _settings(options, STARTS), partial(_cold, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        ratios = {
            f"{record.key}/{peer}": spread["median"]
            for record in records
            for peer, spread in record.found["ratios"].items()
        }
        over = {record.key: record.found["over_warm"]["median"] for record in records if record.key == COLD}
        limits = [Limit(f"{key}/uncached", WARM_GOAL, ratios.get(f"{key}/uncached")) for key in CONCURRENCY]
        return Summary(ratios, [*limits, Limit("cold/over_warm", COLD_GOAL, over.get(COLD), at_most=True)])

    def tables(self, records: Sequence[Record]) -> str:
        columns = ("request", "by", "first token", "times faster (quartiles)")
        rows = []
        for record in _ordered(records):
            rows += markdown.peer_rows(record.key, record.found, OURS, [peer.key for peer in self.peers])
            if record.key == COLD:
                over = markdown.times(record.found["over_warm"])
                seconds = markdown.milliseconds(record.found["after"])
                load = markdown.milliseconds(record.found["load"])
                rows += [["of which loading", OURS, load, "-"], ["after it", OURS, seconds, f"first / warm {over}"]]
        return markdown.table(columns, rows)


def _ordered(records: Sequence[Record]) -> list[Record]:
    return [record for key in (*CONCURRENCY, COLD) for record in records if record.key == key]


def _settings(options: Options, rounds: int) -> dict[str, Any]:
    return {
        "peers": list(options.peers),
        "model": options.model,
        "dtype": "bfloat16",
        "policy": POLICY,
        "policy_tokens": min(POLICY_TOKENS, options.limit or POLICY_TOKENS),
        "question_tokens": QUESTION_TOKENS,
        "rounds": options.steps or rounds,
        "seed": options.seed,
    }


def _side(options: Options, settings: Mapping[str, Any], bank: Path) -> Candidate:
    texts = {"policy": policy(options.data, POLICY), "requests": requests(options.data)}
    return Candidate(OURS, SIDE, {**settings, **texts, "bank": str(bank)})


def _names(options: Options) -> list[str]:
    return [OURS, *(key for key in options.peers if key == UNCACHED.key)]


def _warm(options: Options, concurrency: int, say: Say) -> dict[str, Any]:
    settings = _settings(options, ROUNDS)
    rounds = settings["rounds"]
    with TemporaryDirectory() as folder, _side(options, settings, Path(folder)) as side:
        published = side.ask("publish")
        questions = side.ask("questions", count=concurrency * (rounds + 1))
        tokens: dict[str, list[list[int]]] = {name: [] for name in _names(options)}

        def measure(name: str, turn: int) -> float:
            asked = questions[turn * concurrency : (turn + 1) * concurrency]
            answer = side.ask("ask", questions=asked, published=name == OURS)
            tokens[name].append(answer["tokens"])
            return answer["seconds"]

        found = compared(interleaved(_names(options), rounds, measure), OURS)
    _say(found, say)
    return {**found, "published": published, "same_first_tokens": _same(tokens)}


def _same(tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, float]:
    """Share of questions whose first token is the same as without the prefix; in bfloat16 a tie may fall either way."""
    ours = [token for turn in tokens[OURS] for token in turn]
    shares = {}
    for name, turns in tokens.items():
        theirs = [token for turn in turns for token in turn]
        if name != OURS:
            shares[name] = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return shares


def _cold(options: Options, say: Say) -> dict[str, Any]:
    settings = _settings(options, STARTS)
    with TemporaryDirectory() as folder:
        with _side(options, settings, Path(folder)) as side:
            published = side.ask("publish")
            questions = side.ask("questions", count=WARM + 2)
        seconds: dict[str, list[float]] = {name: [] for name in ("first", "load", "after", *_names(options)[1:])}
        for turn in range(settings["rounds"]):
            say(f"  start {turn + 1} of {settings['rounds']}")
            with _side(options, settings, Path(folder)) as side:
                first, *after = (side.ask("ask", questions=[each], published=True) for each in questions[1:])
                seconds["first"].append(first["seconds"])
                seconds["load"].append(first["found_seconds"])
                seconds["after"].append(statistics.median(answer["seconds"] for answer in after))
                for name in _names(options)[1:]:
                    seconds[name].append(side.ask("ask", questions=questions[:1], published=False)["seconds"])
    figures = {OURS: seconds["first"], **{name: seconds[name] for name in _names(options)[1:]}}
    found = compared(figures, OURS)
    _say(found, say)
    return {
        **found,
        "published": published,
        "load": Spread.of(seconds["load"]).to_json(),
        "after": Spread.of(seconds["after"]).to_json(),
        "over_warm": times_better(seconds["after"], seconds["first"]).to_json(),
    }


def _say(found: Mapping[str, Any], say: Say) -> None:
    for name, run in found["runs"].items():
        say(f"  {name}: {run['seconds']['median'] * 1e3:.1f} ms")
