"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells as aligned columns: names to the left, all others to the right; wide characters take two places."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_cells(row, widths)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    fill = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
    return [row[0] + fill[0], *(space + cell for space, cell in zip(fill[1:], row[1:], strict=True))]
