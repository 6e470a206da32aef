"""`Step` beside Transformers, its matrix products alone, the memory's bandwidth, and llama.cpp alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import mean
from typing import Any, ClassVar

from benchmarks import markdown
from benchmarks.report import WorkloadReport
from foreword.bench import step
from foreword.bench.participants import EMBEDDED, LLAMACPP, LLAMACPP_PACKAGES, OURS, Peer
from foreword.bench.record import Record
from foreword.bench.step import BATCHES, CONTEXT, PREFILL, PREFILL_TOKENS, STEPS, work_of
from foreword.bench.workload import Goal, Log, Options, compared, interleaved, spread, times_better

PRODUCTS = "products"
TRANSFORMERS = Peer(
    "transformers", "the stock model with SDPA attention, a `DynamicCache` and a greedy choice", beside=(EMBEDDED,)
)
ALONE = Peer(
    LLAMACPP,
    "llama.cpp alone on the same GGUF file, called from Python through the same C interface: one batch a step, and the "
    "most probable token of each row; the same cache and threads",
    LLAMACPP_PACKAGES,
)
START = "benchmarks.step_bounds:start"
FACTORIES = {
    TRANSFORMERS.key: "benchmarks.step_transformers:start",
    ALONE.key: "benchmarks.step_llamacpp:start",
}
# How many times as long as the products alone the work may take; a batch of 4 is only looked at.
GOALS = {"b1": 2.0, "b16": 1.5, "b64": 1.5, PREFILL: 1.5}


class Step(WorkloadReport, step.Step):
    about = (
        f"One decode step of B answers, each about {CONTEXT} tokens long (128 in the middle of the turns), mean of "
        f"{STEPS} in a row, and one prompt of {PREFILL_TOKENS:,} tokens until its first token: `Engine.step`, called "
        "by hand. products: the matrix products of the same tokens in the same process, as many times in a row and "
        "nothing else: q/k/v merged, o, gate/up merged and down of every layer with weights of its own, and the output "
        "matrix for the rows that choose. floor: the bytes of those weights over the memory bandwidth measured in the "
        "same turns; no step that reads its weights from memory is faster. With --engine llamacpp the steps are of our "
        "engine on llama.cpp, and products and floor are left out."
    )
    peers: ClassVar[Sequence[Peer]] = (TRANSFORMERS, ALONE)

    def goals(self, engine: str) -> Sequence[Goal]:
        if engine == LLAMACPP:
            return [Goal(f"b1/{ALONE.key}", 0.9)]  # of llama.cpp alone, where one user is answered
        return [Goal(f"{key}/over_products", goal, at_most=True) for key, goal in GOALS.items()]

    def measure(self, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
        what, bandwidths = work_of(settings), []
        rows = {"rows": settings["batch"], "output_rows": settings["batch"]}
        if what == "prefill":
            rows = {"rows": settings["prompt_tokens"], "output_rows": 1}
        with ExitStack() as stack:
            ours = stack.enter_context(step.started(options, settings, START))
            given = {**settings, "prompts": ours.ask("prompts")}
            workers = {OURS: ours}
            for peer in self.peers:
                if peer.key in options.peers:
                    workers[peer.key] = stack.enter_context(peer.worker(FACTORIES[peer.key], given))
                    if what == "step":
                        workers[peer.key].ask("begin")

            def turn(name: str, _: int) -> float:
                if name != PRODUCTS:
                    return mean(workers[name].ask(what) for _ in range(settings["steps"]))
                bandwidths.append(ours.ask("bandwidth"))
                return mean(ours.ask("products", **rows) for _ in range(settings["steps"]))

            # How llama.cpp multiplies quantized weights is its own.
            names = [OURS, *([PRODUCTS] if options.engine == EMBEDDED else []), *options.peers]
            seconds = interleaved(names, settings["rounds"], turn)
            weights = ours.ask("weights") if options.engine == EMBEDDED else 0
        if PRODUCTS not in seconds:
            return compared(seconds, log)
        products = seconds.pop(PRODUCTS)
        bounds = {"products": spread(products), "over_products": times_better(products, seconds[OURS])}
        log(f"  {PRODUCTS}: {bounds['products']['median'] * 1e3:.4g} ms")
        found = {**compared(seconds, log), **bounds}
        if what == "prefill":
            return found
        floor = [weights / each for each in bandwidths[1:]]
        floors = {"floor": spread(floor), "over_floor": times_better(floor, seconds[OURS])}
        return {**found, "weights_bytes": weights, "bytes_per_second": spread(bandwidths[1:]), **floors}

    def table(self, records: Mapping[str, Record]) -> str:
        names = [peer.key for peer in self.peers]
        columns = ("work", "seconds", "products", "over products (quartiles)", "floor")
        rows = [_row(key, records[key], names) for key in (*BATCHES, PREFILL) if key in records]
        return markdown.table((*columns, *(f"`{name}`" for name in names)), rows)


def _row(key: str, record: Record, peers: Sequence[str]) -> list[str]:
    found = record.metrics
    return [
        key,
        markdown.milliseconds(found["runs"][OURS]["seconds"]),
        markdown.milliseconds(found["products"]) if "products" in found else "-",
        markdown.times(found.get("over_products"), missing="-"),
        markdown.milliseconds(found["floor"]) if "floor" in found else "-",
        *(markdown.times(found["ratios"].get(name)) for name in peers),
    ]
