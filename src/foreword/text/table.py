"""Rows of Arrow tables, from Parquet files and Hub data sets. Needs the `[data]` extra."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def require_data_extra(what: str) -> None:
    """Raise DataError, with the mend, where the packages that read tables are not installed."""
    if any(find_spec(module) is None for module in ("pyarrow", "datasets")):
        raise DataError(f"{what} needs the packages datasets and pyarrow; pip install 'foreword[data]'.")


def parquet_rows(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Values and location of every row of a Parquet file; class numbers that a Hub export names become their names.

    Raises:
        DataError: the extra is missing, or the file is not Parquet or cannot be read.
    """
    require_data_extra(str(file))
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        # Open as a file first: pyarrow would take a folder for a data set of many files.
        with file.open("rb") as handle:
            table = parquet.ParquetFile(handle).read()
    except pa.ArrowException as error:
        raise DataError(
            f"{file} is not a Parquet file that can be read: {first_line(error)}; write it anew."
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or first_line(error)}; check the path.") from error
    return table_rows(table, _features(table.schema), str(file))


def table_rows(table: pa.Table, features: Mapping[str, Any], what: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Values and location (such as ``train.parquet row 3``) of every row of a table.

    Values are what JSON has: dates and exact decimals become text. Bytes stay bytes, which are refused where a
    template or a label asks for them, so that a picture beside the text does no harm.

    Args:
        features: the columns' types as `datasets` names them; class numbers become their names.
        what: names the table in errors.

    Raises:
        DataError: two columns share a name, or a class number has no name.
    """
    names = table.column_names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{what} has the column {twice!r} twice; give every column its own name.")
    number = 0
    for batch in table.to_batches():
        for values in batch.to_pylist():
            number += 1
            where = f"{what} row {number}".strip()
            yield (
                {name: _json_value(value, features.get(name), f"{where}: {name!r}") for name, value in values.items()},
                where,
            )


def first_line(error: BaseException) -> str:
    """The first line of another library's error, to quote inside a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    from datasets import Features

    return Features.from_arrow_schema(schema)


def _json_value(value: Any, feature: Any, where: str) -> Any:
    if isinstance(value, dict):
        inner = feature if isinstance(feature, Mapping) else {}
        return {name: _json_value(each, inner.get(name), where) for name, each in value.items()}
    if isinstance(value, list):
        inner = getattr(feature, "feature", None)
        return [_json_value(each, inner, where) for each in value]
    if hasattr(feature, "int2str") and value is not None:
        return _class_name(value, feature, where)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal | datetime.timedelta) else value


def _class_name(value: int, feature: Any, where: str) -> str | None:
    if value == -1:
        return None  # how data sets mark a label that is kept back
    if not 0 <= value < len(feature.names):
        raise DataError(f"{where} is class {value} of {len(feature.names)}; correct the row.")
    return feature.names[value]
