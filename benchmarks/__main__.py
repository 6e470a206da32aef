"""``python -m benchmarks NAME``: ``foreword bench`` with the workloads of this folder, and ``tables``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.page import page
from benchmarks.registry import WORKLOADS
from foreword.bench.record import Results
from foreword.cli import options
from foreword.cli.bench import bench
from foreword.cli.help import Application
from foreword.errors import ForewordError, UsageError

PROGRAM = "python -m benchmarks"
app = Application("Measure Foreword beside other software.", add_completion=False, pretty_exceptions_enable=False)
HELP = f"""Measure Foreword beside other software; each measurement is kept as soon as it is made.

The workloads are {", ".join(WORKLOADS)}. `{PROGRAM} tables` writes docs/benchmarks.md.

Example: {PROGRAM} train --peer peft
"""
app.command("run", help=HELP, context_settings={"obj": WORKLOADS})(bench)


@app.command("tables")
def tables(
    results: Annotated[Path, typer.Option(help="Folder of the measurements.")] = Path("bench/results"),
    out: Annotated[Path, typer.Option(help="Write the page to this file.")] = Path("docs/benchmarks.md"),
) -> None:
    """Write docs/benchmarks.md from what was measured.

    Example: python -m benchmarks tables
    """
    _write(out, page(WORKLOADS, Results(results)))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; give another file with --out.") from error
    options.say(f"wrote {path}")


def main(arguments: list[str]) -> None:
    """Typer ends the process; only our own errors come back."""
    command = arguments if arguments[:1] == ["tables"] else ["run", *arguments]
    try:
        app(command, prog_name=PROGRAM)
    except ForewordError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main(sys.argv[1:])
