"""A blind rating sheet: the answers of two tasks as A and B, to be compared by people.

The sheet is CSV as Excel reads it; which task is A and which is B, drawn for every row, is in a key file beside it.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.errors import UsageError
from foreword.evaluation.report import Prediction, Report
from foreword.text.rows import Row

ROW, A, B, BETTER, COMMENT = "row", "answer A", "answer B", "better: A / B / tie", "comment"


def key_file(sheet: Path) -> Path:
    """Where the key of a sheet is kept."""
    return sheet.with_name(f"{sheet.name}.key.json")


def check_unused(sheet: Path) -> None:
    """Raise UsageError if the sheet or its key exists: it may hold hours of work."""
    for file in (sheet, key_file(sheet)):
        if file.exists():
            raise UsageError(f"{file} exists, and there may be ratings in it; name another file, or remove it.")


def write_sheet(
    sheet: Path, fields: Sequence[str], rows: Sequence[Row], reports: Mapping[str, Report], seed: int = 0
) -> int:
    """Write the sheet and its key.

    Args:
        sheet: the CSV file; nothing may be there.
        fields: of every row that are shown.
        rows: that were evaluated.
        reports: of the two tasks, by name.
        seed: of the draw.

    Returns:
        How many rows have the same answer twice.

    Raises:
        UsageError: there are not two tasks, or the files exist or cannot be written.
    """
    if len(reports) != 2:
        raise UsageError(f"a blind rating is of two different tasks, got {len(reports)}; name one with --compare.")
    check_unused(sheet)
    draw = random.Random(seed)
    orders = [draw.sample(list(reports), 2) for _ in rows]
    lines = [
        _line(number, row, fields, [reports[name].predictions[number - 1] for name in order])
        for number, (row, order) in enumerate(zip(rows, orders, strict=True), 1)
    ]
    key = {"tasks": list(reports), "seed": seed, "rows": {str(n): order for n, order in enumerate(orders, 1)}}
    try:
        _write(sheet, [ROW, *(f"input: {field}" for field in fields), A, B, BETTER, COMMENT], lines)
        key_file(sheet).write_text(json.dumps(key, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the sheet {sheet} cannot be written: {error.strerror}; check the path.") from error
    return sum(line[-4] == line[-3] for line in lines)


def _line(number: int, row: Row, fields: Sequence[str], answers: Sequence[Prediction]) -> list[str]:
    inputs = [_cell(row.values.get(field, "")) for field in fields]
    return [str(number), *inputs, *(_cell(answer.predicted) for answer in answers), "", ""]


def _cell(value: Any) -> str:
    """A value as text. One that a spreadsheet would run as a formula gets an apostrophe in front."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _write(file: Path, header: list[str], lines: list[list[str]]) -> None:
    # Excel takes a file for UTF-8 only if it begins with a byte order mark.
    with file.open("x", encoding="utf-8-sig", newline="") as handle:
        csv.writer(handle).writerows([header, *lines])
