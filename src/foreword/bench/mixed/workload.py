"""`Mixed`: tokens a second of requests behind many learned prefixes, beside PEFT, Transformers and vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from foreword.bench.material import requests
from foreword.bench.measure import Spread, compared, interleaved
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

OURS = "foreword"
KEY = "at-once"
REQUESTS = 64
PREFIXES = 32
LENGTH = 32
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
ROUNDS = 3
GOALS = {"peft": 8.0, "transformers_padded": 2.0, "vllm": 1.5}

PEFT = Peer(
    "peft",
    "`generate` on the stock model with SDPA attention, one prefix after another (its prefix tuning knows one at a "
    "time), all requests of a prefix in one batch; the same prefixes, as Foreword exports them",
    needs=("peft",),
)
PEFT_LORA = Peer(
    "peft_lora",
    "no prefixes, but as many LoRA adapters of rank 8 on all linear layers, random; one `generate` for all requests "
    "with `adapter_names`",
    needs=("peft",),
)
PADDED = Peer(
    "transformers_padded",
    "one batch of all requests, every row with a copy of its own prefix in a `DynamicCache`, and a greedy loop; all "
    "rows are equally long, so there is no padding in it",
)
VLLM = Peer(
    "vllm",
    f"vLLM with our connector, compiled and warmed up, the same prefixes in a bank: {VLLM_SETTINGS}",
    either=VLLM_PACKAGES,
    environment=VLLM_ENVIRONMENT,
    beside=(EMBEDDED,),
)
VLLM_LORA = Peer(
    "vllm_lora",
    "vLLM without our connector, but with as many LoRA adapters as `peft_lora`, random ones that PEFT saved, 32 of "
    "them in a batch and 64 in memory; the same settings as `vllm`, warmed up (on CPUs vLLM compiles nothing that has "
    "adapters)",
    needs=("peft",),
    either=VLLM_PACKAGES,
    lives_with=VLLM.key,
    environment=VLLM_ENVIRONMENT,
)
FOREWORD_SIDE = "foreword.bench.mixed.foreword_side:start"
SAVING_SIDE = "foreword.bench.mixed.peft_side:start_saving"
_SIDES = {
    PEFT.key: "foreword.bench.mixed.peft_side:start",
    PEFT_LORA.key: "foreword.bench.mixed.peft_side:start_lora",
    PADDED.key: "foreword.bench.mixed.padded_side:start",
    VLLM_LORA.key: "foreword.bench.mixed.vllm_lora_side:start",
}


@dataclass(frozen=True)
class Mixed:
    """See ``about``."""

    name: ClassVar[str] = "mixed"
    about: ClassVar[str] = (
        f"{REQUESTS} requests of {PROMPT_TOKENS} tokens, all at once, behind {PREFIXES} learned prefixes of {LENGTH} "
        f"positions (keys and values of real text, moved at random); {OUTPUT_TOKENS} greedy tokens for each, past the "
        "end of text. Every side is a process of its own with all prefixes loaded. same tokens: the share of an answer "
        "up to the first token that differs from Foreword's, a check that the work is the same; in bfloat16 a tie may "
        "fall either way, and everything behind it differs."
    )
    peers: ClassVar[Sequence[Peer]] = (PEFT, PEFT_LORA, PADDED, VLLM, VLLM_LORA)
    engines: ClassVar[Sequence[str]] = (EMBEDDED, "vllm", LLAMACPP)
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [Cell(key_of(options.engine, KEY), _settings(options), partial(_measure, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        ratios = {
            f"{record.key}/{peer}": spread["median"]
            for record in records
            for peer, spread in record.found["ratios"].items()
        }
        goals = {
            f"{key_of(engine, KEY)}/{peer.key}": GOALS[peer.key]
            for engine in by_engine(records) or (EMBEDDED,)
            for peer in _beside(engine)
            if peer.key in GOALS
        }
        return Summary(ratios, [Limit(name, goal, ratios.get(name)) for name, goal in goals.items()])

    def tables(self, records: Sequence[Record]) -> str:
        columns = ("by", "tokens/s", "times faster (quartiles)", "same tokens")
        tables = {}
        for engine, measured in by_engine(records).items():
            names = (OURS, *(peer.key for peer in _beside(engine)))
            tables[engine] = markdown.table(columns, [_row(measured[KEY], name) for name in names])
        return sectioned(tables)


def _beside(engine: str) -> list[Peer]:
    return [peer for peer in Mixed.peers if not peer.beside or engine in peer.beside]


def _row(record: Record, name: str) -> list[str]:
    run = record.found["runs"].get(name)
    if run is None:
        return [f"`{name}`", *[markdown.MISSING] * 3]
    same = record.found["same_tokens"].get(name)
    speed = f"{run['tokens_per_second']['median']:.4g}"
    if name == OURS:
        return [name, speed, "-", "-"]
    return [f"`{name}`", speed, markdown.times(record.found["ratios"][name]), "-" if same is None else f"{same:.2f}"]


def _settings(options: Options) -> dict[str, Any]:
    count = options.limit or REQUESTS
    return {
        "peers": list(options.peers),
        "model": options.model,
        "dtype": "bfloat16",
        "requests": count,
        "prefixes": max(1, min(PREFIXES, count // 2)),
        "length": LENGTH,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "rounds": options.steps or ROUNDS,
        "seed": options.seed,
        **ENGINES[options.engine].settings(),
    }


def _measure(options: Options, say: Say) -> dict[str, Any]:
    settings = _settings(options)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        sides = _sides(options, settings, folder, stack)
        answers: dict[str, list[list[int]]] = {}

        def measure(name: str, turn: int) -> float:
            answer = sides[name].ask("run")
            answers[name] = answer["tokens"]
            say(f"  {name}, turn {turn}: {answer['seconds']:.2f} s")
            return answer["seconds"]

        seconds = interleaved(list(sides), settings["rounds"], measure)
    found = compared(seconds, OURS)
    for name, figures in seconds.items():
        speed = Spread.of([tokens_in(answers[name]) / each for each in figures])
        found["runs"][name]["tokens_per_second"] = speed.to_json()
    return {**found, "same_tokens": same_tokens(answers)}


def _sides(options: Options, settings: Mapping[str, Any], folder: str, stack: ExitStack) -> dict[str, Candidate]:
    given = {**settings, "bank": f"{folder}/bank"}
    text = requests(options.data)
    with Candidate("maker", MAKER, given) as maker:
        maker.ask("publish", text=text)
        given |= {
            "prompts": maker.ask("tokens", text=text, count=settings["requests"], tokens=settings["prompt_tokens"]),
            "folders": maker.ask("export", text=text, folder=f"{folder}/peft"),
        }
        place = maker.ask("folder")
    theirs = {**given, "model": place, "adapters": _adapters(options, {**given, "model": place}, folder)}
    sides = {OURS: stack.enter_context(ENGINES[options.engine].candidate(OURS, FOREWORD_SIDE, given))}
    for peer in Mixed.peers:
        if peer.key not in options.peers:
            continue
        if peer.key == VLLM.key:
            side = ENGINES["vllm"].candidate(peer.key, FOREWORD_SIDE, given)
        else:
            side = Candidate(peer.key, _SIDES[peer.key], theirs, peer.python, peer.environment)
        sides[peer.key] = stack.enter_context(side)
    return sides


def _adapters(options: Options, settings: Mapping[str, Any], folder: str) -> list[str]:
    """Folders of the adapters that vLLM runs, if it does."""
    if VLLM_LORA.key not in options.peers:
        return []
    with Candidate("adapters", SAVING_SIDE, settings, VLLM_LORA.python, VLLM_LORA.environment) as saving:
        return saving.ask("save", folder=f"{folder}/lora")


def tokens_in(answers: Sequence[Sequence[int]]) -> int:
    return sum(map(len, answers))


def same_tokens(answers: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, float]:
    """Mean share of an answer that is as Foreword's, up to the first difference; not for LoRA, which answers others."""
    return {
        name: sum(map(_same, answers[OURS], theirs)) / len(theirs)
        for name, theirs in answers.items()
        if name not in (OURS, PEFT_LORA.key, VLLM_LORA.key)
    }


def _same(ours: Sequence[int], theirs: Sequence[int]) -> float:
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return place / len(ours)
    return 1.0
