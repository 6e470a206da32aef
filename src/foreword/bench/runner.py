"""Runs a workload case by case and keeps every record as soon as it is made: a rerun goes on where one stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from foreword.bench.participants import ENGINES
from foreword.bench.record import Record, Results, environment
from foreword.bench.workload import Case, Log, Options, Summary, Workload
from foreword.errors import BenchError, UsageError
from foreword.progress import Progress


@dataclass(frozen=True)
class BenchResult:
    """What a run of a workload gives: records of all cases that were measured with these settings, now or before.

    ``missing`` is a sentence for every peer that could not be measured, ``failed`` one for every case that went wrong.
    """

    records: Sequence[Record]
    summary: Summary
    missing: Sequence[str]
    failed: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        goals, records = ([each.to_json() for each in group] for group in (self.summary.goals, self.records))
        ended = {"missing": list(self.missing), "failed": list(self.failed)}
        return {"ratios": self.summary.ratios, "limits": goals, "runs": records, **ended}


def run(
    workload: Workload, options: Options, results: Results, log: Log, *, only: Sequence[str] = (), again: bool = False
) -> BenchResult:
    """Measure what is not in ``results`` yet, or everything ``again``. Peers that are not installed are left out.

    Args:
        log: gets a line for every stage.
        only: keys of cases, or beginnings of them up to a slash; all without any.

    Raises:
        UsageError: there is no such case.
        BenchError: the engine cannot be run here, or a record there was made with other settings.
    """
    place = ENGINES[options.engine] if options.engine in workload.engines else None
    if place is not None and (why := place.missing()) is not None:
        raise BenchError(why)
    wanted = {peer: peer.missing() for peer in workload.peers if peer.key in options.peers}
    missing = [why for why in wanted.values() if why is not None]
    failed: list[str] = []
    for why in missing:
        log(why)
    options = replace(options, peers=tuple(peer.key for peer, why in wanted.items() if why is None))
    cases = workload.cases(options)
    versions = {name: version(name) for name in ("torch", "transformers")}
    for peer in [*(peer for peer in wanted if peer.key in options.peers), *([place] if place is not None else [])]:
        versions |= peer.versions or {}
    chosen = [case for case in _chosen(cases, only) if again or not _is_measured(results, workload, case)]
    with Progress("measuring", len(chosen), "cases") as progress:
        for case in chosen:
            log(f"{workload.name} {case.key}")
            try:
                metrics = case.measure(options, case.settings, log)
                record = Record(workload.name, case.key, case.settings, environment(versions), metrics)
            except BenchError as error:
                failed.append(f"{case.key}: {error}")
                log(failed[-1])
            else:
                results.keep(record)
            progress.advance()
    kept = ((case, results.find(workload.name, case.key)) for case in cases)
    records = [record for case, record in kept if record is not None and _difference(record, case) is None]
    return BenchResult(records, workload.summary(records), missing, failed)


def _chosen(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    found = {wanted: [case for case in cases if f"{case.key}/".startswith(f"{wanted}/")] for wanted in only}
    for wanted, matching in found.items():
        if not matching:
            known = ", ".join(case.key for case in cases)
            raise UsageError(f"there is nothing called {wanted!r} to measure; choose from {known}.")
    return [case for case in cases if not only or any(case in matching for matching in found.values())]


def _is_measured(results: Results, workload: Workload, case: Case) -> bool:
    """Whether there is a record of the case. Raises BenchError for one that was made with other settings."""
    record = results.find(workload.name, case.key)
    if record is not None and (difference := _difference(record, case)) is not None:
        path, mend = results.path(workload.name, case.key), "pass --again to replace it, or another --results folder"
        raise BenchError(f"{path} was measured with {difference}; {mend}.")
    return record is not None


def _difference(record: Record, case: Case) -> str | None:
    """The first setting in which a record is not what the case would measure now."""
    names = dict.fromkeys([*case.settings, *record.settings])
    pairs = ((name, record.settings.get(name), case.settings.get(name)) for name in names)
    return next((f"{name} {before!r}, now it is {now!r}" for name, before, now in pairs if before != now), None)
