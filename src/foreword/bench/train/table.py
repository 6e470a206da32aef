"""The `train` workload for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.bench.record import Record
from foreword.bench.train.case import CASES

_COLUMNS = (
    "method",
    "virtual tokens",
    "samples/s",
    "PEFT",
    "times faster (quartiles)",
    "peak memory",
    "PEFT",
    "times less",
    "growth, times less",
    "curves apart",
)


def markdown(records: Mapping[str, Record]) -> str:
    """A row a method that was timed; what was not measured of it is a dash."""
    head = f"| {' | '.join(_COLUMNS)} |\n|---|{'--:|' * (len(_COLUMNS) - 1)}"
    timed = [case for case in CASES.values() if case.method in records]
    return "\n".join([head, *(_row(records[case.method], records.get(case.curve)) for case in timed)])


def _row(record: Record, curve: Record | None) -> str:
    runs, ratios = record.found["runs"], record.found["ratios"].get("peft", {})
    ours, theirs = runs["foreword"], runs.get("peft")
    apart = curve.found["difference"].get("peft") if curve is not None else None
    cells = [
        record.key,
        str(record.settings["length"]),
        f"{ours['samples_per_second']['median']:.1f}",
        f"{theirs['samples_per_second']['median']:.1f}" if theirs else "-",
        _spread(ratios.get("samples_per_second")),
        _gigabytes(ours),
        _gigabytes(theirs) if theirs else "-",
        _times(ratios.get("peak_memory")),
        _times(ratios.get("memory_growth")),
        f"{apart:.1e}" if apart is not None else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(value: Mapping[str, float] | None) -> str:
    return f"**{value['median']:.2f}** ({value['low']:.2f} to {value['high']:.2f})" if value else "-"


def _times(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else "-"


def _gigabytes(run: Mapping[str, Any]) -> str:
    return f"{run['peak_bytes'] / 1e9:.2f} GB"
