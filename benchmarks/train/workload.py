"""`Train`: samples a second, peak memory and the loss curve of learning a prompt, beside PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from benchmarks import markdown, rows
from benchmarks.report import WorkloadReport
from benchmarks.train.methods import METHODS, TrainMethod
from foreword.bench.participants import OURS, Peer
from foreword.bench.record import Record
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options, interleaved, spread, times_better

TEMPLATE = "Review: {text}\nSentiment:{target:answer}"
BATCH, ROWS = 16, 2000
ROUNDS, CURVE = 8, 50
PEFT = Peer(
    "peft",
    "`get_peft_model` on the stock model with SDPA attention; rows padded to the longest of their batch, labels -100 "
    "everywhere but at the answers, and the loss that the model computes; the prompt encoder in float32",
    ("peft",),
)


class Train(WorkloadReport):
    name = "train"
    about = (
        "One training step on SST-2, 16 rows in shuffled order, the answer's tokens learned and nothing else: forward, "
        "backward and AdamW at a constant rate, from the same initial values. Speed and memory in bfloat16, each side "
        "in a process of its own and taking turns batch by batch; the curve is 50 steps of each in float32. Peak "
        "memory is the most that the whole process ever held, libraries and model included; growth is the most "
        "that it held beyond the loaded model. P-tuning's LSTM and prefix tuning's MLP, 512 wide inside, are PEFT's "
        "function on both sides; both begin at Foreword's initial values, real words, since from PEFT's random ones "
        "a nudge of 1e-6 parts Foreword from itself by 0.3 within 50 steps."
    )
    peers: ClassVar[Sequence[Peer]] = (PEFT,)

    def cases(self, options: Options) -> list[Case]:
        shared = {"template": TEMPLATE, "batch_size": BATCH, "rows": options.limit or ROWS}
        cases = []
        for method in METHODS.values():
            own = {**shared, "length": method.length, "lr": method.lr}
            speed, curve = partial(_measure_speed, method), partial(_measure_curves, method)
            cases.append(options.case(method.name, speed, **own, rounds=options.steps or ROUNDS))
            cases.append(options.case(f"{method.name}/curve", curve, **own, curve_steps=options.steps or CURVE))
        return cases

    def goals(self, engine: str) -> Sequence[Goal]:
        return [
            goal
            for method in METHODS.values()
            for goal in (
                Goal(f"{method.name}/{PEFT.key}/samples_per_second", method.faster),
                Goal(f"{method.name}/{PEFT.key}/peak_memory", method.leaner),
                Goal(f"{method.name}/{PEFT.key}/curve_difference", 0.01, at_most=True),
            )
        ]

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        curves = [record for record in records if "difference" in record.metrics]
        return {
            f"{record.key.removesuffix('/curve')}/{peer}/curve_difference": apart
            for record in curves
            for peer, apart in record.metrics["difference"].items()
        }

    def table(self, records: Mapping[str, Record]) -> str:
        head = ("method", "virtual tokens", "samples/s", "PEFT", "times faster (quartiles)", "peak memory", "PEFT")
        timed = [name for name in METHODS if name in records]
        found = [_row(records[name], records.get(f"{name}/curve")) for name in timed]
        return markdown.table((*head, "times less", "growth, times less", "curves apart"), found)


def _row(record: Record, curve: Record | None) -> list[str]:
    """What was not measured is a dash."""
    runs, ratios = record.metrics["runs"], record.metrics["ratios"].get(PEFT.key, {})
    both = [runs.get(name) for name in (OURS, PEFT.key)]
    apart = curve.metrics["difference"].get(PEFT.key) if curve is not None else None
    return [
        record.key,
        str(record.settings["length"]),
        *(f"{run['samples_per_second']['median']:.1f}" if run else "-" for run in both),
        markdown.times(ratios.get("samples_per_second"), ".2f", "-"),
        *(f"{run['peak_bytes'] / 1e9:.2f} GB" if run else "-" for run in both),
        markdown.number(ratios.get("peak_memory"), ".2f"),
        markdown.number(ratios.get("memory_growth"), ".2f"),
        markdown.number(apart, ".1e"),
    ]


def _workers(
    method: TrainMethod, options: Options, settings: Mapping[str, Any], folder: Path, batches: int, stack: ExitStack
) -> dict[str, Worker]:
    """All participants, ready for their first step. PEFT gets Foreword's batches and initial values."""
    data = write_answers(options.data, settings["rows"], folder)
    given = {**settings, "method": method.name, "data": data}
    ours = stack.enter_context(Worker(OURS, "benchmarks.train.foreword:start", given))
    initial = str(folder / "initial.safetensors")
    ours.ask("initial", path=initial)
    config = {"peft_type": method.peft_type, "task_type": "CAUSAL_LM", "num_virtual_tokens": method.length}
    theirs = {
        **settings,
        "model": ours.ask("folder"),
        "batches": ours.ask("batches", count=batches),
        "initial": initial,
        "config": {**config, **method.peft_options},
    }
    peers = [PEFT] if PEFT.key in options.peers else []
    factory = "benchmarks.train.peft_train:start"
    return {OURS: ours} | {peer.key: stack.enter_context(peer.worker(factory, theirs)) for peer in peers}


def write_answers(data: Path, count: int, folder: Path) -> str:
    """A file of rows with the answer as a word."""
    chosen = rows.rows(data)[:count]
    answers = [{"text": row["text"], "answer": rows.VERBALIZER[row["label"]]} for row in chosen]
    return rows.write_jsonl(folder / "rows.jsonl", answers)


def _measure_speed(method: TrainMethod, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Steps of bfloat16, one of each in turn."""
    rounds, given = settings["rounds"], {**settings, "dtype": "bfloat16"}
    losses: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        workers = _workers(method, options, given, Path(folder), rounds + 1, stack)

        def step(name: str, turn: int) -> float:
            answer = workers[name].ask("step", turn=turn)
            losses.setdefault(name, []).append(answer["loss"])
            return answer["seconds"]

        seconds = interleaved(list(workers), rounds, step)
        runs = {
            name: {
                "samples_per_second": spread([BATCH / each for each in seconds[name]]),
                **worker.ask("memory"),
                "trained_parameters": worker.ask("trained_parameters"),
                "losses": losses[name],
            }
            for name, worker in workers.items()
        }
    for name, run in runs.items():
        log(f"  {name}: {run['samples_per_second']['median']:.2f} samples/s, peak {run['peak_bytes'] / 1e9:.2f} GB")
    return {"runs": runs, "ratios": {name: _ratios(seconds, runs, name) for name in runs if name != OURS}}


def _ratios(seconds: Mapping[str, Sequence[float]], runs: Mapping[str, Any], peer: str) -> dict[str, Any]:
    ours, theirs = runs[OURS], runs[peer]
    faster = times_better(seconds[OURS], seconds[peer])
    found: dict[str, Any] = {"samples_per_second": faster, "peak_memory": theirs["peak_bytes"] / ours["peak_bytes"]}
    if ours["growth_bytes"] and theirs["growth_bytes"]:
        found["memory_growth"] = theirs["growth_bytes"] / ours["growth_bytes"]
    return found


def _measure_curves(method: TrainMethod, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Losses of float32, step by step, and how far apart they are."""
    steps, given = settings["curve_steps"], {**settings, "dtype": "float32"}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        workers = _workers(method, options, given, Path(folder), steps, stack)
        curves = {
            name: [each.ask("step", turn=turn)["loss"] for turn in range(steps)] for name, each in workers.items()
        }
    for name, curve in curves.items():
        log(f"  {name}: loss {curve[0]:.4f} to {curve[-1]:.4f} in {steps} steps of float32")
    return {"curves": curves, "difference": differences(curves)}


def differences(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The largest relative difference of ours to each other curve."""
    ours = curves[OURS]
    pairs = {name: list(zip(ours, curve, strict=True)) for name, curve in curves.items() if name != OURS}
    return {name: max(abs(own - other) / abs(other) for own, other in pair) for name, pair in pairs.items()}
