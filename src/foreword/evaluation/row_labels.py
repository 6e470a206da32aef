"""Labels and tags of rows, as references for training and evaluation; errors name the row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from difflib import get_close_matches

from foreword.errors import DataError, VerbalizerError
from foreword.text.row import Row
from foreword.text.template import is_missing, nearest_name

_DELIMITED = re.compile(r"\.[ct]sv(\.gz)? line ", re.IGNORECASE)
_OR_COLUMNS = ", or --columns if the file has no header"
_MEND_LABEL = "write the label, or take the row out"


def row_label(row: Row, label_field: str) -> str:
    """The label of a row as text, numbers and booleans as JSON spells them. Raises DataError."""
    _require_field(row, label_field)
    value = row.values[label_field]
    if isinstance(value, str) and not value.strip():
        raise DataError(f"{row.where}: the label is empty; {_MEND_LABEL}.")
    if is_missing(value):
        raise DataError(f"{row.where}: label {'null' if value is None else 'NaN'} is no label; {_MEND_LABEL}.")
    if not isinstance(value, str | int | float | bool):
        raise DataError(f"{row.where}: label {value!r} is not text; write it as a string.")
    return value if isinstance(value, str) else json.dumps(value)


def row_tags(row: Row, label_field: str) -> tuple[str, ...]:
    """The tags of a row's words, whole numbers as text. Raises DataError."""
    _require_field(row, label_field)
    value = row.values[label_field]
    if not isinstance(value, list) or not all(isinstance(each, str | int) for each in value):
        raise DataError(f"{row.where}: field '{label_field}' must be a list of tags, found {str(value)[:40]!r}.")
    if any(isinstance(each, str) and not each.strip() for each in value):
        raise DataError(f"{row.where}: a tag is empty; write O for a word without one.")
    return tuple(each if isinstance(each, str) else json.dumps(each) for each in value)


def row_label_set(row: Row, label_field: str) -> tuple[str, ...]:
    """The labels of a row that may have several, or none: a list, numbers as text. Raises DataError."""
    _require_field(row, label_field)
    value = row.values[label_field]
    if not isinstance(value, list) or not all(isinstance(each, str | int) for each in value):
        raise DataError(
            f"{row.where}: field '{label_field}' must be a list of labels, empty if there is none, found "
            f"{str(value)[:40]!r}."
        )
    labels = [each if isinstance(each, str) else json.dumps(each) for each in value]
    if any(not label.strip() for label in labels):
        raise DataError(f"{row.where}: a label is empty; {_MEND_LABEL}.")
    return tuple(dict.fromkeys(labels))


def row_number(row: Row, label_field: str) -> float:
    """The number of a row, which may be written as text (CSV). Raises DataError."""
    _require_field(row, label_field)
    value = row.values[label_field]
    try:
        number = math.nan if isinstance(value, bool) or is_missing(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{row.where}: field '{label_field}' must be a finite number to learn, found {str(value)[:40]!r}; write "
            "one, or take the row out."
        )
    return number


def _require_field(row: Row, label_field: str) -> None:
    if label_field not in row.values:
        has = ", ".join(map(str, row.values))
        near = nearest_name(label_field, map(str, row.values))
        flag = f"--label-field {near}" if near else "--label-field"
        raise DataError(
            f"{row.where}: the row has no field '{label_field}' (it has: {has}); pass {flag}"
            f"{_OR_COLUMNS if _DELIMITED.search(row.where) else ''}."
        )


def label_index(labels: Sequence[str], label: str, row: Row) -> int:
    """Index of a row's label among ``labels``. Raises VerbalizerError if it is not one of them."""
    if label in labels:
        return labels.index(label)
    near = get_close_matches(label, labels, n=1)
    mend = f"did you mean '{near[0]}'?" if near else "correct the row, or train with this label."
    shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    raise VerbalizerError(f"{row.where}: label '{label}' is not one of the task's (labels: {shown}); {mend}")
