"""`Mixed`: tokens a second of requests behind many learned prefixes, beside PEFT, Transformers and vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from benchmarks import markdown
from benchmarks.report import WorkloadReport
from benchmarks.stock_vllm import VLLM_SETTINGS
from foreword.bench.participants import EMBEDDED, ENGINES, LLAMACPP, OURS, VLLM, VLLM_ENVIRONMENT, VLLM_PACKAGES, Peer
from foreword.bench.prompts import user_requests
from foreword.bench.record import Record
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options, compared, interleaved, spread

KEY = "at-once"
REQUESTS, PREFIXES, LENGTH, PROMPT_TOKENS, OUTPUT_TOKENS, ROUNDS = 64, 32, 32, 64, 64, 3
GOALS = {"peft": 8.0, "transformers_padded": 2.0, "vllm": 1.5}
PEFT = Peer(
    "peft",
    "`generate` on the stock model with SDPA attention, one prefix after another (its prefix tuning knows one at a "
    "time), all requests of a prefix in one batch; the same prefixes, as Foreword exports them",
    ("peft",),
)
PEFT_LORA = Peer(
    "peft_lora",
    "no prefixes, but as many LoRA adapters of rank 8 on all linear layers, random; one `generate` for all requests "
    "with `adapter_names`",
    ("peft",),
)
PADDED = Peer(
    "transformers_padded",
    "one batch of all requests, every row with a copy of its own prefix in a `DynamicCache`, and a greedy loop; all "
    "rows are equally long, so there is no padding in it",
)
CONNECTOR = Peer(
    VLLM,
    f"vLLM with our connector, compiled and warmed up, the same prefixes in a bank: {VLLM_SETTINGS}",
    VLLM_PACKAGES,
    environment=VLLM_ENVIRONMENT,
    beside=(EMBEDDED,),
)
VLLM_LORA = Peer(
    "vllm_lora",
    "vLLM without our connector, but with as many LoRA adapters as `peft_lora`, random ones that PEFT saved, 32 of "
    "them in a batch and 64 in memory; the same settings as `vllm`, warmed up (on CPUs vLLM compiles nothing that has "
    "adapters)",
    ("peft", *VLLM_PACKAGES),
    shares=VLLM,
    environment=VLLM_ENVIRONMENT,
)
FACTORIES = {
    OURS: "benchmarks.mixed.foreword:start",
    PEFT.key: "benchmarks.mixed.peft_generate:start",
    PEFT_LORA.key: "benchmarks.mixed.peft_generate:start_lora",
    PADDED.key: "benchmarks.mixed.padded:start",
    VLLM_LORA.key: "benchmarks.mixed.vllm_lora:start",
}


class Mixed(WorkloadReport):
    name = "mixed"
    about = (
        f"{REQUESTS} requests of {PROMPT_TOKENS} tokens, all at once, behind {PREFIXES} learned prefixes of {LENGTH} "
        f"positions (keys and values of real text, moved at random); {OUTPUT_TOKENS} greedy tokens for each, past the "
        "end of text. Every side is a process of its own with all prefixes loaded. same tokens: the share of an answer "
        "up to the first token that differs from Foreword's, a check that the work is the same; in bfloat16 a tie may "
        "fall either way, and everything behind it differs."
    )
    peers: ClassVar[Sequence[Peer]] = (PEFT, PEFT_LORA, PADDED, CONNECTOR, VLLM_LORA)
    engines = (EMBEDDED, VLLM, LLAMACPP)

    def cases(self, options: Options) -> list[Case]:
        count = options.limit or REQUESTS
        sizes = {"requests": count, "prefixes": max(1, min(PREFIXES, count // 2)), "length": LENGTH}
        tokens = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        return [options.case(KEY, _measure, dtype="bfloat16", **sizes, **tokens, rounds=options.steps or ROUNDS)]

    def goals(self, engine: str) -> Sequence[Goal]:
        keys = [peer.key for peer in self.peers_beside(engine)]
        return [Goal(f"{KEY}/{key}", GOALS[key]) for key in keys if key in GOALS]

    def table(self, records: Mapping[str, Record]) -> str:
        engine = records[KEY].key.rpartition("/")[0] or EMBEDDED
        names = (OURS, *(peer.key for peer in self.peers_beside(engine)))
        columns = ("by", "tokens/s", "times faster (quartiles)", "same tokens")
        return markdown.table(columns, [_row(records[KEY].metrics, name) for name in names])


def _row(found: Mapping[str, Any], name: str) -> list[str]:
    run = found["runs"].get(name)
    if run is None:
        return [f"`{name}`", *[markdown.MISSING] * 3]
    speed = f"{run['tokens_per_second']['median']:.4g}"
    if name == OURS:
        return [name, speed, "-", "-"]
    same = markdown.number(found["same_tokens"].get(name), ".2f")
    return [f"`{name}`", speed, markdown.times(found["ratios"][name]), same]


def _measure(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    with TemporaryDirectory() as folder, ExitStack() as stack:
        workers = _workers(options, settings, folder, stack)
        answers: dict[str, list[list[int]]] = {}

        def measure(name: str, turn: int) -> float:
            answer = workers[name].ask("run")
            answers[name] = answer["tokens"]
            return answer["seconds"]

        seconds = interleaved(list(workers), settings["rounds"], measure)
    found = compared(seconds, log)
    for name, figures in seconds.items():
        count = sum(map(len, answers[name]))
        found["runs"][name]["tokens_per_second"] = spread([count / each for each in figures])
    return {**found, "same_tokens": same_tokens(answers)}


def _workers(options: Options, settings: Mapping[str, Any], folder: str, stack: ExitStack) -> dict[str, Worker]:
    given = {**settings, "bank": f"{folder}/bank"}
    sizes = {"count": settings["requests"], "tokens": settings["prompt_tokens"]}
    text = user_requests(options.data)
    with Worker("fixtures", "benchmarks.mixed.fixtures:start", given) as made:
        given |= {"folders": made.ask("publish", text=text, folder=f"{folder}/peft")}
        given |= {"prompts": made.ask("tokens", text=text, **sizes)}
        theirs = {**given, "model": made.ask("folder")}
    if VLLM_LORA.key in options.peers:
        with VLLM_LORA.worker("benchmarks.mixed.peft_generate:start_saving", theirs) as saving:
            theirs["adapters"] = saving.ask("save", folder=f"{folder}/lora")
    workers = {OURS: stack.enter_context(ENGINES[options.engine].worker(FACTORIES[OURS], given))}
    for peer in Mixed.peers:
        if peer is CONNECTOR and peer.key in options.peers:
            workers[peer.key] = stack.enter_context(ENGINES[VLLM].worker(FACTORIES[OURS], given))
        elif peer.key in options.peers:
            workers[peer.key] = stack.enter_context(peer.worker(FACTORIES[peer.key], theirs))
    return workers


def same_tokens(answers: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, float]:
    """Mean share of an answer that is as Foreword's, up to the first difference; not for LoRA, which answers others."""
    return {
        name: sum(map(_same, answers[OURS], theirs)) / len(theirs)
        for name, theirs in answers.items()
        if name not in (OURS, PEFT_LORA.key, VLLM_LORA.key)
    }


def _same(ours: Sequence[int], theirs: Sequence[int]) -> float:
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((place / len(ours) for place, (a, b) in pairs if a != b), 1.0)
