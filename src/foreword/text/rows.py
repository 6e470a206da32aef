"""Files of examples: JSONL and CSV become rows that know where they stand, for errors that say so."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DataError


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        values: its fields.
        where: file and line, such as ``train.jsonl line 3``.
    """

    values: dict[str, Any]
    where: str


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a ``.jsonl`` (one object a line) or ``.csv`` (header first) file, in UTF-8.

    Raises:
        DataError: the file is missing, empty, or a line is not what it should be.
    """
    file = Path(path)
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".ndjson": _jsonl, ".csv": _csv}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file} has to end in .jsonl or .csv; convert it to one of them.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(readers[file.suffix.lower()](file, lines))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check the path.") from error
    if not rows:
        raise DataError(f"{file} has no examples; give at least one line of data.")
    return rows


def data_digest(path: str | Path) -> str:
    """SHA-256 of a data file, for provenance."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _jsonl(file: Path, lines: Any) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where} is not JSON ({error.msg}, column {error.colno}); write one object a line."
            ) from error
        if not isinstance(values, dict):
            raise DataError(f'{where} is {type(values).__name__}, expected an object such as {{"text": ...}}.')
        yield Row(values, where)


def _csv(file: Path, lines: Any) -> Iterator[Row]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for values in reader:
            where = f"{file} line {reader.line_num}"
            if None in values or None in values.values():
                raise DataError(f"{where} has another number of columns than the header; quote fields with commas.")
            yield Row(dict(values), where)
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num} is not CSV: {error}.") from error
