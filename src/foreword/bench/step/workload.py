"""`Step`: one decode step and one prefill, beside their matrix products alone and beside Transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.engines import EMBEDDED, ENGINES, LLAMACPP, LLAMACPP_PACKAGES, by_engine, key_of, sectioned
from foreword.bench.material import requests
from foreword.bench.measure import Spread, compared, interleaved, times_better
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

OURS = "foreword"
PRODUCTS = "products"
CONTEXT = 128
PREFILL = "prefill"
SIDES = {EMBEDDED: "foreword.bench.step.side:start", LLAMACPP: "foreword.bench.step.llamacpp_side:start_ours"}
PREFILL_TOKENS = 2000
ROUNDS = 12
# A turn runs so many steps, one right after another as in serving: the first after another candidate's turn finds
# cold caches and sleeping threads, which is not what a step costs.
STEPS = 4
PREFILL_ROUNDS = 5
# Batch and how many times as long as the products alone a step may take; 4 is only looked at.
BATCHES: Mapping[int, float | None] = {1: 2.0, 4: None, 16: 1.5, 64: 1.5}
PREFILL_GOAL = 1.5
# Of llama.cpp alone, where one user is answered.
ALONE_GOAL = 0.9

TRANSFORMERS = Peer(
    "transformers", "the stock model with SDPA attention, a `DynamicCache` and a greedy choice", beside=(EMBEDDED,)
)
ALONE = Peer(
    LLAMACPP,
    "llama.cpp alone on the same GGUF file, called from Python through the same C interface: one batch a step, and the "
    "most probable token of each row; the same cache and threads",
    needs=LLAMACPP_PACKAGES,
)


@dataclass(frozen=True)
class Step:
    """See ``about``."""

    name: ClassVar[str] = "step"
    about: ClassVar[str] = (
        f"One decode step of B answers, each about {CONTEXT} tokens long (128 in the middle of the turns), mean of "
        f"{STEPS} in a row, and one prompt of {PREFILL_TOKENS:,} tokens until its first token: `Engine.step`, called "
        "by hand. products: the matrix products of the same tokens in the same process, as many times in a row and "
        "nothing else: q/k/v merged, o, gate/up merged and down of every layer with weights of its own, and the output "
        "matrix for the rows that choose. floor: the bytes of those weights over the memory bandwidth measured in the "
        "same turns; no step that reads its weights from memory is faster. With --engine llamacpp the steps are of our "
        "engine on llama.cpp, and products and floor are left out."
    )
    peers: ClassVar[Sequence[Peer]] = (TRANSFORMERS, ALONE)
    engines: ClassVar[Sequence[str]] = (EMBEDDED, LLAMACPP)
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        engine = options.engine
        steps = [
            Cell(key_of(engine, _key(batch)), _settings(options, batch), partial(_step, options, batch))
            for batch in BATCHES
        ]
        prefill = Cell(key_of(engine, PREFILL), _prefill_settings(options), partial(_prefill, options))
        return [*steps, prefill]

    def summary(self, records: Sequence[Record]) -> Summary:
        found = {record.key: record.found for record in records}
        ratios = {f"{key}/{peer}": spread["median"] for key in found for peer, spread in found[key]["ratios"].items()}
        limits = []
        engines = by_engine(records)
        if LLAMACPP in engines:
            name = f"{key_of(LLAMACPP, _key(1))}/{ALONE.key}"
            limits.append(Limit(name, ALONE_GOAL, ratios.get(name)))
        if engines and EMBEDDED not in engines:
            return Summary(ratios, limits)
        goals = {_key(batch): goal for batch, goal in BATCHES.items()} | {PREFILL: PREFILL_GOAL}
        limits += [
            Limit(f"{key}/over_products", goal, found[key]["over_products"]["median"] if key in found else None, True)
            for key, goal in goals.items()
            if goal is not None
        ]
        return Summary(ratios, limits)

    def tables(self, records: Sequence[Record]) -> str:
        names = [peer.key for peer in self.peers]
        columns = (
            "work",
            "seconds",
            "products",
            "over products (quartiles)",
            "floor",
            *(f"`{name}`" for name in names),
        )
        tables = {}
        for engine, measured in by_engine(records).items():
            known = [measured[key] for key in (*map(_key, BATCHES), PREFILL) if key in measured]
            tables[engine] = markdown.table(columns, [_row(record, names) for record in known])
        return sectioned(tables)


def _row(record: Record, peers: Sequence[str]) -> list[str]:
    found = record.found
    return [
        record.key.rpartition("/")[2],
        markdown.milliseconds(found["runs"][OURS]["seconds"]),
        markdown.milliseconds(found["products"]) if "products" in found else "-",
        markdown.times(found["over_products"]) if "over_products" in found else "-",
        markdown.milliseconds(found["floor"]) if "floor" in found else "-",
        *(markdown.times(found["ratios"].get(name)) for name in peers),
    ]


def _key(batch: int) -> str:
    return f"b{batch}"


def _settings(options: Options, batch: int) -> dict[str, Any]:
    rounds = options.steps or ROUNDS
    return {
        "peers": list(options.peers),
        "model": options.model,
        "dtype": "bfloat16",
        "batch": batch,
        # Half of the turns come before the context that is named, half behind it.
        "prompt_tokens": CONTEXT - rounds * STEPS // 2,
        "rounds": rounds,
        "steps": STEPS,
        "seed": options.seed,
        **ENGINES[options.engine].settings(),
    }


def _prefill_settings(options: Options) -> dict[str, Any]:
    tokens = min(PREFILL_TOKENS, options.limit or PREFILL_TOKENS)
    rounds = options.steps or PREFILL_ROUNDS
    return {**_settings(options, 1), "prompt_tokens": tokens, "rounds": rounds, "steps": 1}


def _sides(options: Options, settings: Mapping[str, Any], stack: ExitStack) -> dict[str, Candidate]:
    mine = {**settings, "text": requests(options.data)}
    ours = stack.enter_context(ENGINES[options.engine].candidate(OURS, SIDES[options.engine], mine))
    theirs = {**settings, "folder": ours.ask("folder"), "prompts": ours.ask("prompts")}
    return {OURS: ours} | {
        peer.key: stack.enter_context(
            Candidate(peer.key, f"foreword.bench.step.{peer.key}_side:start", theirs, peer.python, peer.environment)
        )
        for peer in Step.peers
        if peer.key in options.peers
    }


def _step(options: Options, batch: int, say: Say) -> dict[str, Any]:
    settings = _settings(options, batch)
    rounds, steps = settings["rounds"], settings["steps"]
    with ExitStack() as stack:
        sides = _sides(options, settings, stack)
        bounded = options.engine == EMBEDDED
        weights = sides[OURS].ask("weights") if bounded else 0
        bandwidths: list[float] = []

        def measure(name: str, turn: int) -> float:
            ask = sides[OURS if name == PRODUCTS else name].ask
            if name != PRODUCTS:
                return mean(ask("step") for _ in range(steps))
            bandwidths.append(ask("bandwidth"))
            return mean(ask("products", rows=batch, output_rows=batch) for _ in range(steps))

        for name, side in sides.items():
            side.ask("begin", **({"tokens": (rounds + 1) * steps + 1} if name == OURS else {}))
        seconds = interleaved([OURS, *_bounds(options), *options.peers], rounds, measure)
    if not bounded:
        return _found(seconds, say)
    floor = [weights / bandwidth for bandwidth in bandwidths[1:]]
    found = {
        **_found(seconds, say),
        "weights_bytes": weights,
        "bytes_per_second": Spread.of(bandwidths[1:]).to_json(),
        "floor": Spread.of(floor).to_json(),
        "over_floor": times_better(floor, seconds[OURS]).to_json(),
    }
    return found


def _prefill(options: Options, say: Say) -> dict[str, Any]:
    settings = _prefill_settings(options)
    with ExitStack() as stack:
        sides = _sides(options, settings, stack)

        def measure(name: str, turn: int) -> float:
            if name != PRODUCTS:
                return sides[name].ask("prefill")
            return sides[OURS].ask("products", rows=settings["prompt_tokens"], output_rows=1)

        seconds = interleaved([OURS, *_bounds(options), *options.peers], settings["rounds"], measure)
    return _found(seconds, say)


def _bounds(options: Options) -> list[str]:
    """What is no peer but bounds us; how llama.cpp multiplies quantized weights is its own."""
    return [PRODUCTS] if options.engine == EMBEDDED else []


def _found(seconds: Mapping[str, Sequence[float]], say: Say) -> dict[str, Any]:
    """Figures of all, with the products apart: they are no peer but what bounds us."""
    others = {name: figures for name, figures in seconds.items() if name != PRODUCTS}
    for name, figures in seconds.items():
        say(f"  {name}: {Spread.of(figures).median * 1e3:.2f} ms")
    if PRODUCTS not in seconds:
        return compared(others, OURS)
    over = times_better(seconds[PRODUCTS], seconds[OURS])
    return {
        **compared(others, OURS),
        "products": Spread.of(seconds[PRODUCTS]).to_json(),
        "over_products": over.to_json(),
    }
