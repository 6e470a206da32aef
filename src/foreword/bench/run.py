"""Running a workload: cell by cell, each kept as soon as it is measured, so that a rerun goes on where one stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.bench.engines import ENGINES
from foreword.bench.facts import facts
from foreword.bench.peers import Peer
from foreword.bench.record import Record, Results
from foreword.bench.workload import Cell, Options, Say, Summary, Workload
from foreword.errors import BenchError, UsageError
from foreword.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """What a run of a workload gives.

    Attributes:
        records: of all its cells that have been measured so, now or before, wanted this time or not.
        summary: what they come to.
        missing: a sentence for every peer that could not be measured.
        failed: a sentence for every cell that went wrong; the others were measured all the same.
    """

    records: Sequence[Record]
    summary: Summary
    missing: Sequence[str]
    failed: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "ratios": self.summary.ratios,
            "limits": [limit.to_json() for limit in self.summary.limits],
            "runs": [record.to_json() for record in self.records],
            "missing": list(self.missing),
            "failed": list(self.failed),
        }


def run(
    workload: Workload, options: Options, results: Results, say: Say, *, only: Sequence[str] = (), again: bool = False
) -> Outcome:
    """Measure what has not been measured yet.

    Args:
        workload: what to run.
        options: with the peers that are wanted; those that are not installed are left out and named.
        results: where records are kept.
        say: gets a line for every stage.
        only: keys of cells, or beginnings of them up to a slash; all without any.
        again: measure what has been measured, too.

    Raises:
        UsageError: there is no such cell.
        BenchError: the engine cannot be run here, or a record there was made with other settings.
    """
    engine = _engine(workload, options)
    present, missing = _present(workload, options, say)
    options = replace(options, peers=present)
    every = workload.cells(options)
    cells = _chosen(every, only)
    versions = _versions([*(peer for peer in workload.peers if peer.key in present), *engine])
    failed: list[str] = []
    wanted = [cell for cell in cells if again or not _measured(results, workload, cell)]
    with Progress("measuring", len(wanted), "cells") as progress:
        for cell in wanted:
            say(f"{workload.name} {cell.key}")
            try:
                found = cell.measure(say)
                record = Record(workload.name, cell.key, cell.settings, facts(versions), found)
            except BenchError as error:
                failed.append(f"{cell.key}: {error}")
                say(failed[-1])
            else:
                results.keep(record)
            progress.advance()
    kept = ((cell, results.find(workload.name, cell.key)) for cell in every)
    records = [record for cell, record in kept if record is not None and _difference(record, cell) is None]
    return Outcome(records, workload.summary(records), missing, failed)


def _present(workload: Workload, options: Options, say: Say) -> tuple[tuple[str, ...], list[str]]:
    """The wanted peers that can be measured, and a sentence for each of the others."""
    present, missing = [], []
    for peer in workload.peers:
        if peer.key in options.peers:
            why = peer.missing()
            if why is None:
                present.append(peer.key)
            else:
                missing.append(why)
                say(why)
    return tuple(present), missing


def _chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    for wanted in only:
        if not any(_matches(cell.key, wanted) for cell in cells):
            known = ", ".join(cell.key for cell in cells)
            raise UsageError(f"there is nothing called {wanted!r} to measure; choose from {known}.")
    return [cell for cell in cells if not only or any(_matches(cell.key, wanted) for wanted in only)]


def _matches(key: str, wanted: str) -> bool:
    return key == wanted or key.startswith(f"{wanted}/")


def _measured(results: Results, workload: Workload, cell: Cell) -> bool:
    """Whether there is a record of the cell already. Raises BenchError for one that was made differently."""
    record = results.find(workload.name, cell.key)
    if record is None:
        return False
    if (difference := _difference(record, cell)) is not None:
        raise BenchError(
            f"{results.path(workload.name, cell.key)} was measured with {difference}; pass --again to replace it, or "
            "another --results folder."
        )
    return True


def _difference(record: Record, cell: Cell) -> str | None:
    """The first setting in which a record is not what the cell would measure now."""
    for name in [*cell.settings, *(name for name in record.settings if name not in cell.settings)]:
        before, now = record.settings.get(name), cell.settings.get(name)
        if before != now:
            return f"{name} {before!r}, now it is {now!r}"
    return None


def _engine(workload: Workload, options: Options) -> list[Peer]:
    """Where the engine runs, if one does the work. Raises BenchError if it cannot."""
    if options.engine not in workload.engines:
        return []
    place = ENGINES[options.engine].place
    if (why := place.missing()) is not None:
        raise BenchError(why)
    return [place]


def _versions(candidates: Sequence[Peer]) -> dict[str, str]:
    """Of everything that the candidates run on."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "transformers")}
    for peer in candidates:
        found |= {name: found_version for name, found_version in (peer.versions or {}).items() if found_version}
    return found
