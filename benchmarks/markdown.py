"""Tables and figures in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foreword.bench.participants import OURS
from foreword.bench.record import Record

MISSING = "missing"
"""In place of a peer that was not there to be measured; a dash means that nothing applies."""
Spread = Mapping[str, float]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """The first ``words`` columns are text, the others are figures."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * words}{'--:|' * (len(columns) - words)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def milliseconds(seconds: Spread | None) -> str:
    """The median of seconds."""
    return f"{seconds['median'] * 1e3:.4g} ms" if seconds else MISSING


def times(ratio: Spread | None, digits: str = ".3g", missing: str = MISSING) -> str:
    """The median of a ratio, and its quartiles."""
    if not ratio:
        return missing
    return f"**{ratio['median']:{digits}}** ({ratio['low']:{digits}} to {ratio['high']:{digits}})"


def number(value: float | None, digits: str) -> str:
    return f"{value:{digits}}" if value is not None else "-"


def peer_rows(name: str, record: Record, peers: Sequence[str]) -> list[list[str]]:
    """Seconds and ratios of ours, then of every peer, also of those that are missing."""
    runs, ratios = record.metrics["runs"], record.metrics["ratios"]
    rows = [[name, OURS, milliseconds(runs[OURS]["seconds"]), "-"]]
    for peer in peers:
        seconds = runs[peer]["seconds"] if peer in runs else None
        rows.append([name, f"`{peer}`", milliseconds(seconds), times(ratios.get(peer))])
    return rows
