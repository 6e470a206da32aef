"""Files of examples: JSONL and CSV become rows that know where they stand, for errors that say so."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DataError, UsageError


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        values: its fields.
        where: file and line, such as ``train.jsonl line 3``.
    """

    values: dict[str, Any]
    where: str

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of the user's making that come out of this block begin with where the row stands."""
        try:
            yield
        except UsageError as error:
            if str(error).startswith(self.where):
                raise
            raise type(error)(f"{self.where}: {error}") from error


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a ``.jsonl`` (one object a line) or ``.csv`` (header first) file, in UTF-8.

    Raises:
        DataError: the file is missing, empty, or a line is not what it should be.
    """
    file = Path(path)
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".ndjson": _jsonl, ".csv": _csv}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file} has to end in .jsonl or .csv; convert it to one of them.")
    rows = list(readers[file.suffix.lower()](file, io.StringIO(read_utf8(file), newline="")))
    if not rows:
        raise DataError(f"{file} has no examples; give at least one line of data.")
    return rows


def read_utf8(file: Path) -> str:
    """The text of a file, without a byte order mark. Raises DataError that says what is wrong."""
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file} line {line} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check the path.") from error


def data_digest(path: str | Path) -> str:
    """SHA-256 of a data file, for provenance."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _jsonl(file: Path, lines: io.StringIO) -> Iterator[Row]:
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


def _csv(file: Path, lines: io.StringIO) -> Iterator[Row]:
    records = _records(file, lines)
    _, header = next(records, (1, []))
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise DataError(f"{file} has the column {twice!r} twice; give every column its own name.")
    for number, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{file} line {number} has {len(cells)} columns, the header {len(header)}; quote fields with commas."
            )
        yield Row(dict(zip(header, cells, strict=True)), f"{file} line {number}")


def _records(file: Path, lines: io.StringIO) -> Iterator[tuple[int, list[str]]]:
    """Records with the line on which they begin: a quoted field may go over several."""
    reader = csv.reader(lines, strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file} line {begins} is not CSV: {error}; check its quotes.") from error
