"""`Train`: samples a second, peak memory and the loss curve of learning a prompt, beside PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench.candidate import Candidate
from foreword.bench.measure import Spread, interleaved, times_better
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.train import table
from foreword.bench.train.case import CASES, Case
from foreword.bench.workload import Cell, Limit, Options, Say, Summary
from foreword.text.rows import read_rows

OURS = "foreword"
TEMPLATE = "Review: {text}\nSentiment:{target:answer}"
WORDS = {"positive": " great", "negative": " bad"}
BATCH = 16
ROWS = 2000
ROUNDS = 8
CURVE = 50
CURVE_GOAL = 0.01

PEFT = Peer(
    "peft",
    "`get_peft_model` on the stock model with SDPA attention; rows padded to the longest of their batch, labels -100 "
    "everywhere but at the answers, and the loss that the model computes; the prompt encoder in float32",
    needs=("peft",),
)


@dataclass(frozen=True)
class Train:
    """See ``about``."""

    name: ClassVar[str] = "train"
    about: ClassVar[str] = (
        "One training step on SST-2, 16 rows in shuffled order, the answer's tokens learned and nothing else: forward, "
        "backward and AdamW at a constant rate, from the same initial values. Speed and memory in bfloat16, each side "
        "in a process of its own and taking turns batch by batch; the curve is 50 steps of each in float32. Peak "
        "memory is the most that the whole process ever held, libraries and model included; growth is the most "
        "that it held beyond the loaded model. P-tuning's LSTM and prefix tuning's MLP, 512 wide inside, are PEFT's "
        "function on both sides; both begin at Foreword's initial values, real words, since from PEFT's random ones "
        "a nudge of 1e-6 parts Foreword from itself by 0.3 within 50 steps."
    )
    peers: ClassVar[Sequence[Peer]] = (PEFT,)
    engines: ClassVar[Sequence[str]] = ()
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        cells = []
        for case in CASES.values():
            speed = {**_settings(case, options), "rounds": options.steps or ROUNDS}
            curve = {**_settings(case, options), "curve_steps": options.steps or CURVE}
            cells.append(Cell(case.method, speed, partial(_speed, case, options, speed)))
            cells.append(Cell(case.curve, curve, partial(_curves, case, options, curve)))
        return cells

    def summary(self, records: Sequence[Record]) -> Summary:
        found = {record.key: record.found for record in records}
        ratios = {
            f"{method}/{peer}/{name}": _middle(value)
            for method in CASES
            for peer, values in found.get(method, {}).get("ratios", {}).items()
            for name, value in values.items()
        }
        return Summary(ratios, [limit for case in CASES.values() for limit in _limits(case, found, ratios)])

    def tables(self, records: Sequence[Record]) -> str:
        return table.markdown({record.key: record for record in records})


def _settings(case: Case, options: Options) -> dict[str, Any]:
    return {
        "peers": list(options.peers),
        "model": options.model,
        "template": TEMPLATE,
        "length": case.length,
        "lr": case.lr,
        "batch_size": BATCH,
        "rows": options.limit or ROWS,
        "seed": options.seed,
    }


def _middle(value: Any) -> float:
    return value["median"] if isinstance(value, Mapping) else value


def _limits(case: Case, found: Mapping[str, Any], ratios: Mapping[str, float]) -> list[Limit]:
    """Of what has been measured."""
    key, limits = f"{case.method}/{PEFT.key}", []
    if case.method in found:
        limits.append(Limit(f"{key}/samples_per_second", case.faster, ratios.get(f"{key}/samples_per_second")))
        limits.append(Limit(f"{key}/peak_memory", case.leaner, ratios.get(f"{key}/peak_memory")))
    if (curve := found.get(case.curve)) is not None:
        apart = curve["difference"].get(PEFT.key)
        limits.append(Limit(f"{key}/curve_difference", CURVE_GOAL, apart, at_most=True))
    return limits


def _sides(
    case: Case, options: Options, settings: Mapping[str, Any], folder: Path, dtype: str, batches: int, stack: ExitStack
) -> dict[str, Candidate]:
    """All sides, ready for their first step. The other sides get Foreword's batches and initial values."""
    shared = {"model": options.model, "dtype": dtype, "lr": case.lr}
    mine = {**settings, **shared, "method": case.method, "data": str(_data(options, settings["rows"], folder))}
    ours = stack.enter_context(Candidate(OURS, "foreword.bench.train.foreword_step:start", mine))
    initial = folder / f"{dtype}.safetensors"
    ours.ask("initial", path=str(initial))
    given = {**shared, "batches": ours.ask("batches", count=batches), "initial": str(initial)}
    config = {"peft_type": case.peft_type, "task_type": "CAUSAL_LM", "num_virtual_tokens": case.length}
    theirs = {**given, "model": ours.ask("folder"), "config": {**config, **case.peft_options}}
    return {OURS: ours} | {
        peer.key: stack.enter_context(
            Candidate(peer.key, f"foreword.bench.train.{peer.key}_step:start", theirs, peer.python)
        )
        for peer in (PEFT,)
        if peer.key in options.peers
    }


def _data(options: Options, rows: int, folder: Path) -> Path:
    """SST-2 rows with the answer as a word."""
    file = folder / "rows.jsonl"
    found = [row.values for row in read_rows(options.data / "sst2" / "train.jsonl")[:rows]]
    lines = [json.dumps({"text": row["text"], "answer": WORDS[row["label"]]}) for row in found]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def _speed(case: Case, options: Options, settings: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Steps of bfloat16, one of each side in turn."""
    rounds = settings["rounds"]
    losses: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        sides = _sides(case, options, settings, Path(folder), "bfloat16", rounds + 1, stack)

        def step(name: str, turn: int) -> float:
            answer = sides[name].ask("step", turn=turn)
            losses.setdefault(name, []).append(answer["loss"])
            return answer["seconds"]

        seconds = interleaved(list(sides), rounds, step)
        runs = {name: _run(side, seconds[name], losses[name]) for name, side in sides.items()}
    ratios = {name: _ratios(seconds, runs, name) for name in sides if name != OURS}
    for name, found in runs.items():
        say(f"  {name}: {found['samples_per_second']['median']:.2f} samples/s, peak {found['peak_bytes'] / 1e9:.2f} GB")
    return {"runs": runs, "ratios": ratios}


def _run(side: Candidate, seconds: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    return {
        "samples_per_second": Spread.of([BATCH / each for each in seconds]).to_json(),
        **side.ask("memory"),
        "trained_parameters": side.ask("trained_parameters"),
        "losses": losses,
    }


def _ratios(seconds: Mapping[str, Sequence[float]], runs: Mapping[str, Any], peer: str) -> dict[str, Any]:
    ours, theirs = runs[OURS], runs[peer]
    found: dict[str, Any] = {
        "samples_per_second": times_better(seconds[OURS], seconds[peer]).to_json(),
        "peak_memory": theirs["peak_bytes"] / ours["peak_bytes"],
    }
    if ours["growth_bytes"] and theirs["growth_bytes"]:
        found["memory_growth"] = theirs["growth_bytes"] / ours["growth_bytes"]
    return found


def _curves(case: Case, options: Options, settings: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Losses of float32, step by step, and how far apart they are."""
    steps = settings["curve_steps"]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        sides = _sides(case, options, settings, Path(folder), "float32", steps, stack)
        curves = {name: [side.ask("step", turn=turn)["loss"] for turn in range(steps)] for name, side in sides.items()}
    for name, curve in curves.items():
        say(f"  {name}: loss {curve[0]:.4f} to {curve[-1]:.4f} in {steps} steps of float32")
    return {"curves": curves, "difference": _differences(curves)}


def _differences(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The largest relative difference to each other curve."""
    return {
        name: max(abs(own - other) / abs(other) for own, other in zip(curves[OURS], curve, strict=True))
        for name, curve in curves.items()
        if name != OURS
    }
