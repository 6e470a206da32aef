"""`read_rows`: rows of a data file, a folder, a Hub data set or of memory, each with its place for errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.errors import DataError
from foreword.text.delimited import Layout, delimited_rows
from foreword.text.hub import SCHEME, HubDataset, saved_split
from foreword.text.json_rows import json_rows
from foreword.text.memory import Tabular, memory_rows
from foreword.text.row import Row, values_digest
from foreword.text.table import parquet_rows
from foreword.text.text_file import is_folder, read_utf8, stem_suffix

Source = str | Path | Sequence[Any] | Tabular
"""A file or data set by its name, or rows in memory: a list of dicts, a `datasets.Dataset` or a pandas DataFrame."""

JSON = (".jsonl", ".json", ".ndjson")
DELIMITED = (".csv", ".tsv")
KINDS = (*JSON, *DELIMITED, ".parquet")


@dataclass(frozen=True)
class DataFile:
    """What was read from one source.

    Attributes:
        rows: at least one.
        what: the format that was found, in a few words.
        warnings: clauses about what may be wrong and was read as it stands.
    """

    rows: list[Row]
    what: str
    warnings: tuple[str, ...] = ()


def read_rows(source: Source, layout: Layout | None = None) -> list[Row]:
    """The rows of a source, see `read_data`."""
    return read_data(source, layout).rows


def read_data(source: Source, layout: Layout | None = None) -> DataFile:
    """Read all rows of a source.

    Args:
        source: rows in memory, or the name of: a JSON file (one object a line, an array, pretty-printed objects,
            pandas's columns), a ``.csv`` or ``.tsv`` file (header first, unless ``layout`` has the columns; every cell
            is text), in UTF-8 and perhaps packed as ``.gz``; a ``.parquet`` file; a folder that
            `datasets.Dataset.save_to_disk` wrote; ``hub:OWNER/NAME[/CONFIG][@REVISION]:SPLIT`` (``hub:./FOLDER:SPLIT``
            for a folder that `datasets` can read). The last three need the `[data]` extra.
        layout: of CSV and TSV files, where it does not follow from the file.

    Raises:
        DataError: it is missing, empty, or a line is not what it should be.
        SettingError: a layout for something that is no CSV or TSV file.
    """
    layout = layout or Layout()
    data = _read(source, layout)
    if not is_delimited(source):
        layout.require_none(source_name(source))
    if not data.rows:
        raise DataError(f"{source_name(source)} has no examples; give at least one line of data.")
    return data


def data_digest(source: Source) -> str:
    """SHA-256 of a data file, or of the rows of a data set or of memory, for provenance."""
    if isinstance(source, str | Path) and not _is_hub(source) and not is_folder(Path(source)):
        with Path(source).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    return values_digest(row.values for row in _read(source, Layout()).rows)


def is_delimited(source: Source) -> bool:
    """Whether a source is a CSV or TSV file, by its name."""
    return isinstance(source, str | Path) and not _is_hub(source) and stem_suffix(Path(source)) in DELIMITED


def source_name(source: Source) -> str:
    """The name of a source in sentences and in records: its path, or what it is."""
    return str(source) if isinstance(source, str | Path) else "rows in memory"


def _is_hub(source: Source) -> bool:
    return isinstance(source, str) and source.startswith(SCHEME)


def _read(source: Source, layout: Layout) -> DataFile:
    if not isinstance(source, str | Path):
        return DataFile(memory_rows(source), "rows in memory")
    if _is_hub(source):
        return DataFile([Row(*row) for row in HubDataset.parse(str(source)).rows()], "a data set")
    file = Path(source)
    kind = stem_suffix(file)
    if is_folder(file) and kind not in KINDS:
        only = saved_split(file)
        read = _read(f"{SCHEME}{file.absolute()}:{only}", layout)
        rows = [Row(row.values, f"{file} row {number}") for number, row in enumerate(read.rows, 1)]
        return replace(read, rows=rows, what="a data set on disk")
    if kind == ".parquet":
        return DataFile([Row(*row) for row in parquet_rows(file)], "Parquet")
    if kind in JSON:
        return DataFile(*json_rows(str(file), read_utf8(file), columns_of_lists=kind == ".json"))
    if kind in DELIMITED:
        read = delimited_rows(str(file), read_utf8(file), layout, tabs=kind == ".tsv")
        return DataFile(read.rows, read.what, read.warnings)
    raise DataError(f"{file} has to end in .jsonl, .json, .csv, .tsv or .parquet; convert it to one of them.")
