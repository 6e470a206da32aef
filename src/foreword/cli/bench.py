"""``foreword bench``, and the command of `benchmarks/`, which brings further workloads."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options
from foreword.cli.completion import complete_values
from foreword.cli.interruption import command_line, on_interrupt
from foreword.core.lazy_registry import LazyRegistry
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.bench.runner import BenchResult
    from foreword.bench.workload import Workload

WORKLOADS: Mapping[str, Workload] = LazyRegistry(
    {
        "ttft": "foreword.bench.ttft.Ttft",
        "step": "foreword.bench.step.Step",
        "serve": "foreword.bench.serve.Serve",
        "many": "foreword.bench.many.Many",
        "conformance": "foreword.bench.conformance.Conformance",
    }
)
PAGE = Path("docs/models.md")
MOVED = ("train", "many-train", "search", "quality", "distill", "mixed", "tables")
"""Workloads that need a checkout, where `benchmarks/` has them."""


def bench(
    context: typer.Context,
    workload: Annotated[
        str, typer.Argument(help="One of the workloads above.", autocompletion=complete_values(WORKLOADS))
    ],
    types: Annotated[
        list[str] | None,
        typer.Argument(help="conformance --all: these model types alone, such as llama.", show_default="all"),
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Measure beside this peer only; may be repeated.", show_default="all")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine that does the work, if there is a choice: embedded, vllm or llamacpp.",
            show_default="embedded",
            autocompletion=complete_values(("embedded", "vllm", "llamacpp")),
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Measure only this, such as warm/8; may be repeated.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of the data sets.", envvar="FOREWORD_DATA")] = Path(
        "../shared/data"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps, for a short look.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Fewer rows, for a short look.")] = None,
    seed: Annotated[int, typer.Option(help="Of data order and initial values.")] = 0,
    results: Annotated[Path, typer.Option(help="Folder that keeps every measurement.")] = Path("bench/results"),
    again: Annotated[bool, typer.Option("--again", help="Measure what is kept already, too.")] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="conformance: of every architecture of Transformers, tiny and random.")
    ] = False,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="With --all: causal, masked or seq2seq, with commas between.", show_default="causal,masked,seq2seq"
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            help="With --all: write the table here; of chosen architectures only where this is given.",
            show_default="docs/models.md",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON object to this file, too.")] = None,
    model: options.ModelName = None,
    json: options.Json = False,
) -> None:
    """Measure your own model on this machine; each measurement is kept as soon as it is made.

    ttft: time to the first token behind a published policy. step: one decode step, one prefill. serve: streaming
    clients over HTTP. many: a thousand published prefixes. conformance: differences to plain Transformers; with --all,
    those of every architecture, as a table in docs/models.md.

    Example: foreword bench ttft --model smollm2-135m
    """
    options.quiet_libraries()
    chosen, used = _find(context.obj or WORKLOADS, workload, engine)
    if all_:
        chosen = _all_architectures(workload, kinds, types)
    elif types or kinds or page:
        name = "--kinds" if kinds else "--page" if page else types[0] if types else ""
        raise UsageError(f"{name} is for every architecture; add --all: foreword bench conformance --all.")
    from foreword.bench.record import Results, write_json
    from foreword.bench.runner import run
    from foreword.bench.workload import Options

    if chosen.reads_data and not data.is_dir():
        raise UsageError(f"there are no data sets in {data}; give their folder with --data or $FOREWORD_DATA.")
    peers = _peers(chosen, peer, used)
    wanted = Options(data, model or options.default_model(), peers, steps, limit, seed, used)
    with on_interrupt(lambda: _resume_hint(results, again)):
        result = run(chosen, wanted, Results(results), options.say, only=only or (), again=again)
    if out is not None:
        write_json(out, result.to_json())
    if all_:
        _write_page(page, result, complete=not (types or kinds or only))
    options.emit(result.to_json(), _text(result), json)
    if result.failed:
        raise typer.Exit(1)


def _resume_hint(results: Path, again: bool) -> str:
    """The hint of an interrupted run: which measurements are kept, and the command that goes on."""
    leaving = ", leaving out --again" if again else ""
    return f"what was measured is kept in {results}; go on with{leaving}: {command_line()}"


def _find(workloads: Mapping[str, Workload], name: str, engine: str | None) -> tuple[Workload, str]:
    """The workload, and the engine that does the work, if any does."""
    if name not in workloads:
        near = get_close_matches(name, workloads, n=1)
        known = f"{f'did you mean {near[0]}? There are' if near else 'choose'} {', '.join(workloads)}"
        moved = f"it is in a checkout of Foreword: python -m benchmarks {name}"
        raise UsageError(f"there is no workload {name!r}; {moved if name in MOVED else known}.")
    from foreword.bench.participants import EMBEDDED

    workload = workloads[name]
    if engine is not None and engine not in workload.engines:
        known = f"choose {', '.join(workload.engines)}" if workload.engines else "leave --engine out"
        raise UsageError(f"workload {name} has no engine {engine!r}; {known}.")
    return workload, engine or next(iter(workload.engines), EMBEDDED)


def _all_architectures(workload: str, kinds: str | None, types: list[str] | None) -> Workload:
    """The workload of ``--all``. Raises UsageError."""
    if workload != "conformance":
        raise UsageError(f"--all is for conformance, not for {workload}; leave it out.")
    from foreword.bench.architectures.conformance import ArchitectureConformance

    return ArchitectureConformance(**{"kinds": kinds.split(",")} if kinds else {}, model_types=types or ())


def _write_page(page: Path | None, result: BenchResult, *, complete: bool) -> None:
    """Write the table of a complete run, or where it was asked for."""
    if page is None and not complete:
        options.say(
            "the table is of chosen architectures, so docs/models.md stays as it is; give --page FILE to write it."
        )
        return
    from foreword.bench.architectures.models_page import models_page

    path = page or PAGE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(models_page(result.records), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the table cannot be written to {path}: {error.strerror}; give another --page.") from error
    options.say(f"{path} is written")


def _peers(workload: Workload, wanted: list[str] | None, engine: str) -> tuple[str, ...]:
    known = [peer.key for peer in workload.peers_beside(engine)]
    for name in wanted or ():
        if name not in known:
            beside = f" beside the engine {engine}" if workload.engines else ""
            choice = f"choose {', '.join(known)}" if known else "leave --peer out"
            more = f"; in a checkout of Foreword, python -m benchmarks {workload.name} has more peers"
            raise UsageError(
                f"workload {workload.name} has no peer {name!r}{beside}; {choice}{more if _is_own(workload) else ''}."
            )
    return tuple(known if wanted is None else wanted)


def _is_own(workload: Workload) -> bool:
    """Whether it is one of the package's, not of `benchmarks/`."""
    return type(workload).__module__.startswith("foreword.")


def _text(result: BenchResult) -> str:
    lines = [f"{name}: {value:.3g}" for name, value in result.summary.ratios.items()]
    if not lines:  # without a comparison, times alone
        runs = ((record.key, *run) for record in result.records for run in record.metrics.get("runs", {}).items())
        lines = [f"{key}: {run['seconds']['median'] * 1e3:.4g} ms" for key, _, run in runs if "seconds" in run]
    for goal in result.summary.goals:
        wanted = f"wanted {'<=' if goal.at_most else '>='} {goal.target:g}"
        verdict = "met" if goal.met else "NOT met"
        found = f"not measured, {wanted}" if goal.value is None else f"{goal.value:.3g}, {wanted}: {verdict}"
        lines.append(f"{goal.name}: {found}")
    return "\n".join([*lines, *result.missing, *result.failed])
