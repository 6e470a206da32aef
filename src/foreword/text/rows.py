"""`read_rows`: rows of a data file or of a Hub data set, each with its file and line for errors."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foreword.errors import DataError, UsageError
from foreword.text.hub import SCHEME, HubDataset
from foreword.text.table import parquet_rows


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        values: its fields, as JSON has them: text, numbers, booleans, null, lists and objects.
        where: file and line, such as ``train.jsonl line 3``, or ``train.parquet row 3``.
    """

    values: dict[str, Any]
    where: str

    @contextmanager
    def error_context(self) -> Iterator[None]:
        """Prefix the UsageErrors raised in this block with the row's file and line."""
        try:
            yield
        except UsageError as error:
            if str(error).startswith(self.where):
                raise
            raise type(error)(f"{self.where}: {error}") from error


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a file or of a Hub data set.

    Args:
        path: a ``.jsonl`` (one object a line), ``.csv`` or ``.tsv`` (header first; every cell is text) file in UTF-8,
            a ``.parquet`` file, or ``hub:OWNER/NAME[/CONFIG][@REVISION]:SPLIT`` (``hub:./FOLDER:SPLIT`` for a folder
            that `datasets.load_dataset` can read). The last two need the `[data]` extra.

    Raises:
        DataError: it is missing, empty, or a line is not what it should be.
    """
    rows = list(_hub_rows(str(path)) if _is_hub(path) else _file_rows(Path(path)))
    if not rows:
        raise DataError(f"{path} has no examples; give at least one line of data.")
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
    """SHA-256 of a data file, or of the rows of a Hub data set, for provenance."""
    if _is_hub(path):
        return HubDataset.parse(str(path)).digest()
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _is_hub(path: str | Path) -> bool:
    return isinstance(path, str) and path.startswith(SCHEME)


def _hub_rows(name: str) -> Iterator[Row]:
    return (Row(values, where) for values, where in HubDataset.parse(name).rows())


def _file_rows(file: Path) -> Iterator[Row]:
    kind = file.suffix.lower()
    if kind == ".parquet":
        return (Row(values, where) for values, where in parquet_rows(file))
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": partial(_csv, between="\t")}
    if kind not in readers:
        raise DataError(f"{file} has to end in .jsonl, .csv, .tsv or .parquet; convert it to one of them.")
    return readers[kind](file, io.StringIO(read_utf8(file), newline=""))


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


def _csv(file: Path, lines: io.StringIO, between: str = ",") -> Iterator[Row]:
    """Cells stay text, whatever they look like: a label ``007`` is not a number."""
    records = _csv_records(file, lines, between)
    _, header = next(records, (1, []))
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise DataError(f"{file} has the column {twice!r} twice; give every column its own name.")
    for number, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{file} line {number} has {len(cells)} columns, the header {len(header)}; quote fields with "
                f"{'commas' if between == ',' else 'tabs'}."
            )
        yield Row(dict(zip(header, cells, strict=True)), f"{file} line {number}")


def _csv_records(file: Path, lines: io.StringIO, between: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of their first line; a quoted field may span several lines."""
    reader = csv.reader(lines, delimiter=between, strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        kind = "CSV" if between == "," else "TSV"
        raise DataError(f"{file} line {begins} is not {kind}: {error}; check its quotes.") from error
