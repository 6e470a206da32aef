"""Tables and figures in Markdown, as the workloads print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "missing"
"""What stands where a peer was not there to be measured: a dash would look as if the cell did not apply."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is words, the others are figures."""
    head = f"| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def milliseconds(spread: Mapping[str, float] | None) -> str:
    """The median of seconds."""
    return f"{spread['median'] * 1e3:.4g} ms" if spread else MISSING


def times(spread: Mapping[str, float] | None) -> str:
    """The median of a ratio, and its quartiles."""
    if not spread:
        return MISSING
    return f"**{spread['median']:.3g}** ({spread['low']:.3g} to {spread['high']:.3g})"


def peer_rows(name: str, found: Mapping[str, Any], ours: str, peers: Sequence[str]) -> list[list[str]]:
    """Rows of `foreword.bench.measure.compared`: ours, then every peer, also those that are missing."""
    runs, ratios = found["runs"], found["ratios"]
    rows = [[name, ours, milliseconds(runs[ours]["seconds"]), "-"]]
    for peer in peers:
        seconds = runs[peer]["seconds"] if peer in runs else None
        rows.append([name, f"`{peer}`", milliseconds(seconds), times(ratios.get(peer))])
    return rows
