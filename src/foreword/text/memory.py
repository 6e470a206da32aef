"""Rows in memory: a list of dicts, a `datasets.Dataset` or a pandas DataFrame become rows as a file's do."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from foreword.errors import DataError
from foreword.text.row import Row


@runtime_checkable
class Tabular(Protocol):
    """What a `datasets.Dataset` and a pandas DataFrame have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def to_dict(self, *args: Any, **options: Any) -> Any: ...


def memory_rows(source: Sequence[Any] | Tabular) -> list[Row]:
    """Rows with places such as ``row 3``. Raises DataError for anything but mappings of JSON values."""
    if isinstance(features := getattr(source, "features", None), Mapping) and not isinstance(source, Tabular):
        # A `datasets.IterableDataset`, whose rows have numbers in place of the names of classes.
        from datasets import Dataset, Features

        source = Dataset.from_list(list(source), features=Features(features))
    if isinstance(source, Tabular):
        return [Row(*each) for each in _table_rows(source)]
    rows = []
    for number, values in enumerate(source, 1):
        if isinstance(values, Row):
            rows.append(values)
            continue
        if not isinstance(values, Mapping):
            raise DataError(f"row {number} is {type(values).__name__}, expected a dict such as {{'text': ...}}.")
        rows.append(Row({str(name): _json_value(value) for name, value in values.items()}, f"row {number}"))
    return rows


def _table_rows(table: Any) -> Iterable[tuple[dict[str, Any], str]]:
    if hasattr(table, "features"):
        # As Arrow, pictures and sounds stay undecoded, and classes get their names.
        from foreword.text.table import table_rows

        return (
            (values, where.strip()) for values, where in table_rows(table.with_format("arrow")[:], table.features, "")
        )
    if not hasattr(table, "columns"):
        raise DataError(f"the rows are a {type(table).__name__}, which has no columns; give a DataFrame.")
    names = [str(name) for name in table.columns]
    if len(set(names)) != len(names):
        raise DataError("the DataFrame has two columns of one name; give every column its own.")
    # Each column by itself: pandas would make all numbers of a row one type.
    columns = [[_json_value(value) for value in table.iloc[:, at].tolist()] for at in range(len(names))]
    return (
        (dict(zip(names, cells, strict=True)), f"row {number}")
        for number, cells in enumerate(zip(*columns, strict=True), 1)
    )


def _json_value(value: Any) -> Any:
    """The value as JSON has it; arrays and numbers of NumPy, missing values and times of pandas included."""
    if value is None or isinstance(value, str | bool | bytes):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        return {str(name): _json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    if isinstance(value, int | float) and type(value) in (int, float):
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if (as_python := getattr(value, "tolist", None)) is not None:
        return _json_value(as_python())
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal | datetime.timedelta) else value
