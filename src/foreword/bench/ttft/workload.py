"""`Ttft`: time to the first token behind a policy that is published, beside sending it along."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.engines import (
    EMBEDDED,
    ENGINES,
    LLAMACPP,
    VLLM_ENVIRONMENT,
    VLLM_PACKAGES,
    VLLM_SETTINGS,
    by_engine,
    key_of,
    sectioned,
)
from foreword.bench.maker import MAKER
from foreword.bench.material import policy, requests
from foreword.bench.measure import Spread, compared, interleaved, times_better
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

OURS = "foreword"
SIDE = "foreword.bench.ttft.side:start"
VLLM_SIDE = "foreword.bench.ttft.vllm_side:start"
TASK = "policy"
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
# vLLM's own cache is gone after a restart, and a published policy is not.
RESTART_GOAL = 1.0

UNCACHED = Peer(
    "uncached",
    "the same engine in the same process, the policy sent along and nothing of it reused; beside our engine on vLLM, "
    "vLLM by itself under a salt of its own for every request",
)
VLLM = Peer(
    "vllm",
    "vLLM by itself, the policy sent along and found again by its automatic prefix caching, in blocks of 128 tokens as "
    f"it chooses on CPUs, but for the first request of a process; compiled and warmed up: {VLLM_SETTINGS}",
    either=VLLM_PACKAGES,
    environment=VLLM_ENVIRONMENT,
)
Ask = Callable[..., dict[str, Any]]


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
    engines: ClassVar[Sequence[str]] = (EMBEDDED, "vllm", LLAMACPP)
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        warm = [
            Cell(key_of(options.engine, key), _settings(options, ROUNDS), partial(_warm, options, concurrency))
            for key, concurrency in CONCURRENCY.items()
        ]
        return [*warm, Cell(key_of(options.engine, COLD), _settings(options, STARTS), partial(_cold, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        ratios = {
            f"{record.key}/{peer}": spread["median"]
            for record in records
            for peer, spread in record.found["ratios"].items()
        }
        limits = []
        for engine, measured in by_engine(records).items() or [(EMBEDDED, {})]:
            warm = [f"{key_of(engine, key)}/{UNCACHED.key}" for key in CONCURRENCY]
            limits += [Limit(name, WARM_GOAL, ratios.get(name)) for name in warm]
            cold = key_of(engine, COLD)
            over = measured[COLD].found["over_warm"]["median"] if COLD in measured else None
            limits.append(Limit(f"{cold}/over_warm", COLD_GOAL, over, at_most=True))
            if engine == VLLM.key:
                limits.append(Limit(f"{cold}/{VLLM.key}", RESTART_GOAL, ratios.get(f"{cold}/{VLLM.key}")))
        return Summary(ratios, limits)

    def tables(self, records: Sequence[Record]) -> str:
        return sectioned({engine: _table(measured) for engine, measured in by_engine(records).items()})


def _table(measured: Mapping[str, Record]) -> str:
    columns = ("request", "by", "first token", "times faster (quartiles)")
    rows = []
    for key in (*CONCURRENCY, COLD):
        if key not in measured:
            continue
        found = measured[key].found
        rows += markdown.peer_rows(key, found, OURS, [peer.key for peer in Ttft.peers])
        if key == COLD:
            over, seconds = markdown.times(found["over_warm"]), markdown.milliseconds(found["after"])
            load = markdown.milliseconds(found["load"])
            rows += [["of which loading", OURS, load, "-"], ["after it", OURS, seconds, f"first / warm {over}"]]
    return markdown.table(columns, rows)


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
        **ENGINES[options.engine].settings(),
    }


@dataclass(frozen=True)
class _Made:
    """What was made before anybody is measured.

    Attributes:
        given: settings of the sides, with the policy as it is published.
        published: its ``tokens`` and ``bytes``.
    """

    given: Mapping[str, Any]
    published: Mapping[str, int]
    questions: Sequence[str]


def _made(options: Options, settings: Mapping[str, Any], bank: Path, questions: int) -> _Made:
    given = {**settings, "bank": str(bank), "task": TASK}
    with Candidate("maker", MAKER, given) as maker:
        text = maker.ask("cut", text=policy(options.data, POLICY), tokens=settings["policy_tokens"])
        published = maker.ask("publish_text", name=TASK, text=text)
        texts = maker.ask("texts", text=requests(options.data), count=questions, tokens=QUESTION_TOKENS)
    return _Made({**given, "policy": text}, published, texts)


def _ours(options: Options, made: _Made) -> Candidate:
    return ENGINES[options.engine].candidate(OURS, SIDE, made.given)


def _stock(made: _Made) -> Candidate:
    return Candidate(VLLM.key, VLLM_SIDE, made.given, VLLM.python, VLLM.environment)


def _own_uncached(options: Options) -> bool:
    """Whether our own side is `uncached`, too. An engine that reuses what it computed cannot be."""
    return UNCACHED.key in options.peers and not ENGINES[options.engine].reuses


def _asks_stock(options: Options) -> bool:
    return VLLM.key in options.peers or (UNCACHED.key in options.peers and not _own_uncached(options))


def _names(options: Options) -> list[str]:
    return [OURS, *options.peers]


def _warm(options: Options, concurrency: int, say: Say) -> dict[str, Any]:
    settings = _settings(options, ROUNDS)
    rounds = settings["rounds"]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        made = _made(options, settings, Path(folder), concurrency * (rounds + 1))
        asks = _asks(options, made, stack)
        tokens: dict[str, list[list[int]]] = {name: [] for name in _names(options)}

        def measure(name: str, turn: int) -> float:
            answer = asks[name](questions=made.questions[turn * concurrency : (turn + 1) * concurrency])
            tokens[name].append(answer["tokens"])
            return answer["seconds"]

        found = compared(interleaved(_names(options), rounds, measure), OURS)
    _say(found, say)
    return {**found, "published": made.published, "same_first_tokens": _same(tokens)}


def _asks(options: Options, made: _Made, stack: ExitStack) -> dict[str, Ask]:
    """How each is asked."""
    ours = stack.enter_context(_ours(options, made))
    asks = {OURS: partial(ours.ask, "ask", published=True)}
    if _own_uncached(options):
        asks[UNCACHED.key] = partial(ours.ask, "ask", published=False)
    if _asks_stock(options):
        stock = stack.enter_context(_stock(made))
        asks.setdefault(UNCACHED.key, partial(stock.ask, "ask", fresh=True))
        asks[VLLM.key] = partial(stock.ask, "ask", fresh=False)
    return asks


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
        made = _made(options, settings, Path(folder), WARM + 2)
        sent, first, *others = ([question] for question in made.questions)
        seconds: dict[str, list[float]] = {name: [] for name in ("first", "load", "after", *_names(options)[1:])}
        for turn in range(settings["rounds"]):
            say(f"  start {turn + 1} of {settings['rounds']}")
            with _ours(options, made) as side:
                cold, *after = (side.ask("ask", questions=each, published=True) for each in (first, *others))
                seconds["first"].append(cold["seconds"])
                seconds["load"].append(cold["found_seconds"])
                seconds["after"].append(statistics.median(answer["seconds"] for answer in after))
                if _own_uncached(options):
                    seconds[UNCACHED.key].append(side.ask("ask", questions=sent, published=False)["seconds"])
            if _asks_stock(options):
                with _stock(made) as stock:
                    theirs = {VLLM.key: stock.ask("ask", questions=first, fresh=False)}
                    if not _own_uncached(options):
                        theirs[UNCACHED.key] = stock.ask("ask", questions=sent, fresh=True)
                for name in theirs.keys() & seconds.keys():
                    seconds[name].append(theirs[name]["seconds"])
    figures = {OURS: seconds["first"], **{name: seconds[name] for name in _names(options)[1:]}}
    found = compared(figures, OURS)
    _say(found, say)
    return {
        **found,
        "published": made.published,
        "load": Spread.of(seconds["load"]).to_json(),
        "after": Spread.of(seconds["after"]).to_json(),
        "over_warm": times_better(seconds["after"], seconds["first"]).to_json(),
    }


def _say(found: Mapping[str, Any], say: Say) -> None:
    for name, run in found["runs"].items():
        say(f"  {name}: {run['seconds']['median'] * 1e3:.1f} ms")
