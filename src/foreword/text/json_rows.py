"""Rows of JSON text: one object a line, an array of objects, pretty-printed objects, or the columns of a table.

The shape is read from the text, not from the file's name: people save all of them as ``.json`` and ``.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foreword.core.json_reader import InvalidJson, parse_json, parse_json_at
from foreword.errors import DataError
from foreword.text.row import Row

# Keys below which a file of one object keeps its rows.
_WRAPPERS = ("data", "rows", "examples")
_MEND = "write one object a line"
_RECORDS = f"{_MEND} (in pandas: to_json(path, orient='records', lines=True))"
_SPACE = " \t\r\n"


def json_rows(name: str, text: str, *, columns_of_lists: bool) -> tuple[list[Row], str]:
    """The rows of a text, and what it was in a few words.

    Args:
        name: of the file, for errors.
        columns_of_lists: whether one object of lists of one length is a table; else it is a row that holds lists.

    Raises:
        DataError: it is no JSON, or not of these shapes.
    """
    values = list(_values(name, text))
    if len(values) == 1 and isinstance(values[0][0], list):
        return _array_rows(name, values[0][0]), "a JSON array"
    for value, line in values:
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise DataError(f'{name} line {line} is {kind}, expected an object such as {{"text": ...}}.')
    if len(values) == 1 and (table := _table(name, values[0][0], columns_of_lists)) is not None:
        records, what = table
        return [Row(record, f"{name} row {number}") for number, record in enumerate(records, 1)], what
    rows = [Row(value, f"{name} line {line}") for value, line in values]
    pretty = len({line for _, line in values}) < len(values) or text.strip().count("\n") >= 2 * len(values)
    return rows, "JSON objects over several lines" if pretty else "JSON Lines"


def _values(name: str, text: str) -> Iterator[tuple[Any, int]]:
    """The JSON values of a text one behind the other, each with the number of the line that it begins in."""
    at, line = 0, 1
    while True:
        start = _skip_space(text, at)
        line += _breaks(text, at, start)
        if start == len(text):
            return
        try:
            value, at = parse_json_at(text, start, constants=True)  # Python writes NaN where a cell is empty
        except InvalidJson as error:
            raise _broken(name, text, start, line, error) from error
        yield value, line
        line += _breaks(text, start, at)


def _broken(name: str, text: str, start: int, line: int, error: InvalidJson) -> DataError:
    """The error about a value that begins at ``start``: about its line, if the first value has a line of its own."""
    if error.position is None:
        return DataError(f"{name} line {line}: {error.reason}; {_MEND}.")
    first = _skip_space(text, 0)
    if first < start and "\n" not in text[first : parse_json_at(text, first, constants=True)[1]]:
        try:
            parse_json(text[start:].split("\n", 1)[0], constants=True)
        except InvalidJson as own:
            column = f", column {own.position + 1}" if own.position is not None else ""
            return DataError(f"{name} line {line} is not JSON ({own.reason}{column}); {_MEND}.")
    at, column = line + _breaks(text, start, error.position), error.position - text.rfind("\n", 0, error.position)
    mend = "mend the array, or " if text[first] == "[" else ""
    return DataError(f"{name} line {at} is not JSON ({error.reason}, column {column}); {mend}{_MEND}.")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _breaks(text: str, start: int, end: int) -> int:
    """Line breaks in a part of a text: of Unix, Windows, and old Macs."""
    piece = text[start:end]
    return piece.count("\n") + piece.count("\r") - piece.count("\r\n")


def _array_rows(name: str, values: list[Any]) -> list[Row]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise DataError(f'{name} row {number} is {kind}, expected an object such as {{"text": ...}}.')
    return [Row(value, f"{name} row {number}") for number, value in enumerate(values, 1)]


def _table(name: str, value: dict[str, Any], columns_of_lists: bool) -> tuple[list[dict[str, Any]], str] | None:
    """The rows of one object that holds all of them; ``None`` if the object is itself a row."""
    wrapped = [key for key in _WRAPPERS if _is_records(value.get(key))]
    if len(wrapped) == 1 and not any(_is_records(other) for key, other in value.items() if key != wrapped[0]):
        return value[wrapped[0]], f"a JSON array under {wrapped[0]!r}"
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return _split_rows(name, value["columns"], value["data"]), "pandas JSON, orient split"
    columns = list(value.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        return _mapped_rows(name, value)
    if columns_of_lists and columns and all(isinstance(column, list) for column in columns):
        if len({len(column) for column in columns}) != 1:
            raise DataError(f"{name} has columns of different lengths; {_RECORDS}.")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)], "columns of lists"
    return None


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _split_rows(name: str, columns: list[Any], data: list[Any]) -> list[dict[str, Any]]:
    for number, cells in enumerate(data, 1):
        if not isinstance(cells, list) or len(cells) != len(columns):
            raise DataError(f"{name} row {number} does not have the {len(columns)} cells of the columns; {_RECORDS}.")
    if len({str(column) for column in columns}) != len(columns):
        raise DataError(f"{name} has a column twice; give every column its own name.")
    return [dict(zip(map(str, columns), cells, strict=True)) for cells in data]


def _mapped_rows(name: str, value: Mapping[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], str] | None:
    """Rows of columns by name with cells by index (pandas's default), or of rows by index with cells by name."""
    inner = list(next(iter(value.values())))
    outer_counts, inner_counts = all(map(_is_index, value)), all(map(_is_index, inner))
    if outer_counts and inner_counts:
        raise DataError(
            f"{name}: rows and columns both have numbers for names, so they cannot be told apart; {_RECORDS}."
        )
    if outer_counts:
        return list(value.values()), "pandas JSON, orient index"
    if not inner_counts:
        return None
    if any(list(column) != inner for column in value.values()):
        raise DataError(f"{name} has columns with different rows; {_RECORDS}.")
    return [{key: column[at] for key, column in value.items()} for at in inner], "pandas JSON, orient columns"


def _is_index(key: str) -> bool:
    return key.lstrip("-").isdigit()
