"""``foreword bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options
from foreword.cli.interruption import command_line, on_interrupt
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.bench.record import Results
    from foreword.bench.run import Outcome
    from foreword.bench.workload import Workload

TABLES = "tables"


def bench(
    workload: Annotated[
        str,
        typer.Argument(
            help="ttft, mixed, many, step, serve, train, many-train, search, quality, distill or conformance; tables "
            "writes the docs' page and the README's matrix from the results."
        ),
    ],
    peer: Annotated[
        list[str] | None, typer.Option(help="Measure beside this peer only; may be repeated.", show_default="all")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine that does the work, if there is a choice: embedded, vllm or llamacpp.", show_default="embedded"
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure only this, such as sst2/p-tuning-v2; may be repeated.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the data sets.", envvar="FOREWORD_DATA")] = Path(
        "../shared/data"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps, for a short look.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Fewer rows, for a short look.")] = None,
    seed: Annotated[int, typer.Option(help="Of data order and initial values.")] = 0,
    results: Annotated[Path, typer.Option(help="Folder that keeps every measurement.")] = Path("bench/results"),
    again: Annotated[bool, typer.Option("--again", help="Measure what is kept already, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON object to this file, too.")] = None,
    model: options.ModelName = None,
    json: options.Json = False,
) -> None:
    """Measure Foreword beside its peers; each measurement is kept as soon as it is made.

    Example: foreword bench train --peer peft
    """
    from foreword.bench.record import Results, write_json
    from foreword.bench.run import run
    from foreword.bench.workload import Options

    if workload == TABLES:
        _write_page(Results(results), out or Path("docs/benchmarks.md"))
        if out is None:
            _write_matrix(Results(results), Path("README.md"))
        return
    chosen, used = _find(workload, engine)
    wanted = Options(
        _folder(data) if chosen.reads_data else data,
        model or options.default_model(),
        _peers(chosen, peer, used),
        steps,
        limit,
        seed,
        used,
    )
    options.quiet_libraries()
    with on_interrupt(lambda: _left(results, again)):
        outcome = run(chosen, wanted, Results(results), options.say, only=only or (), again=again)
    if out is not None:
        write_json(out, outcome.to_json())
    options.emit(outcome.to_json(), _text(outcome), json)
    if outcome.failed:
        raise typer.Exit(1)


def _left(results: Path, again: bool) -> str:
    """What an interrupted measurement leaves behind, and how it goes on."""
    leaving = ", leaving out --again" if again else ""
    return f"what was measured is kept in {results}; go on with{leaving}: {command_line()}"


def _find(name: str, engine: str | None) -> tuple[Workload, str]:
    """The workload, and the engine that does the work; none is called by the empty name."""
    from foreword.bench.registry import WORKLOADS

    if name not in WORKLOADS:
        raise UsageError(f"there is no workload {name!r}; choose {', '.join(WORKLOADS)} or {TABLES}.")
    workload = WORKLOADS[name]
    if engine is not None and engine not in workload.engines:
        known = f"choose {', '.join(workload.engines)}" if workload.engines else "leave --engine out"
        raise UsageError(f"workload {name} has no engine {engine!r}; {known}.")
    return workload, engine or next(iter(workload.engines), "")


def _peers(workload: Workload, wanted: list[str] | None, engine: str) -> tuple[str, ...]:
    known = [peer.key for peer in workload.peers if not peer.beside or engine in peer.beside]
    for name in wanted or ():
        if name not in known:
            raise UsageError(
                f"workload {workload.name} has no peer {name!r}{_with(engine)}; choose {', '.join(known)}."
            )
    return tuple(known if wanted is None else wanted)


def _with(engine: str) -> str:
    return f" beside the engine {engine}" if engine else ""


def _folder(data: Path) -> Path:
    if not data.is_dir():
        raise UsageError(f"there are no data sets in {data}; give their folder with --data or $FOREWORD_DATA.")
    return data


def _write_page(results: Results, path: Path) -> None:
    from foreword.bench.registry import WORKLOADS
    from foreword.bench.tables import page

    _write(path, page(WORKLOADS, results))


def _write_matrix(results: Results, path: Path) -> None:
    """Where there is no README, as outside of a checkout, there is nothing to fill in."""
    from foreword.bench.readme import with_matrix

    if path.is_file():
        _write(path, with_matrix(path.read_text(encoding="utf-8"), results))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; give another file with --out.") from error
    options.say(f"wrote {path}")


def _text(outcome: Outcome) -> str:
    lines = [f"{name}: {value:.3g}" for name, value in outcome.summary.ratios.items()]
    for limit in outcome.summary.limits:
        wanted = f"wanted {'<=' if limit.at_most else '>='} {limit.goal:g}"
        verdict = "met" if limit.met else "NOT met"
        found = f"not measured, {wanted}" if limit.found is None else f"{limit.found:.3g}, {wanted}: {verdict}"
        lines.append(f"{limit.name}: {found}")
    return "\n".join([*lines, *outcome.missing, *outcome.failed])
