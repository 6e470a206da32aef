"""`Mixed`: tokens a second of requests behind many learned prefixes, beside PEFT and Transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
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
VLLM = Peer("vllm", "vLLM with our connector, compiled and warmed up", awaits="vLLM engine")
VLLM_LORA = Peer("vllm_lora", "vLLM's multi-LoRA, compiled and warmed up", awaits="vLLM engine")
_SIDES = {
    PEFT.key: "foreword.bench.mixed.peft_side:start",
    PEFT_LORA.key: "foreword.bench.mixed.peft_side:start_lora",
    PADDED.key: "foreword.bench.mixed.padded_side:start",
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
    engines: ClassVar[Sequence[str]] = ("embedded",)
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [Cell(KEY, _settings(options), partial(_measure, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        ratios = {
            f"{record.key}/{peer}": spread["median"]
            for record in records
            for peer, spread in record.found["ratios"].items()
        }
        goals = {f"{KEY}/{peer}": goal for peer, goal in GOALS.items()}
        return Summary(ratios, [Limit(name, goal, ratios.get(name)) for name, goal in goals.items()])

    def tables(self, records: Sequence[Record]) -> str:
        columns = ("by", "tokens/s", "times faster (quartiles)", "same tokens")
        names = (OURS, *(peer.key for peer in self.peers))
        return markdown.table(columns, [_row(record, name) for record in records for name in names])


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
    text = {"text": requests(options.data)}
    ours = stack.enter_context(Candidate(OURS, "foreword.bench.mixed.foreword_side:start", {**settings, **text}))
    theirs = {
        **settings,
        "model": ours.ask("folder"),
        "folders": ours.ask("export", folder=folder),
        "prompts": ours.ask("prompts"),
    }
    return {OURS: ours} | {
        peer.key: stack.enter_context(Candidate(peer.key, _SIDES[peer.key], theirs, peer.python))
        for peer in Mixed.peers
        if peer.key in options.peers
    }


def tokens_in(answers: Sequence[Sequence[int]]) -> int:
    return sum(map(len, answers))


def same_tokens(answers: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, float]:
    """Mean share of an answer that is as Foreword's, up to the first difference; not for LoRA, which answers others."""
    return {
        name: sum(map(_same, answers[OURS], theirs)) / len(theirs)
        for name, theirs in answers.items()
        if name not in (OURS, PEFT_LORA.key)
    }


def _same(ours: Sequence[int], theirs: Sequence[int]) -> float:
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return place / len(ours)
    return 1.0
