"""Labels and tags of rows, as references for training and evaluation; errors name the row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches

from foreword.errors import DataError, VerbalizerError
from foreword.text.rows import Row


def row_label(row: Row, label_field: str) -> str:
    """The label of a row as text, numbers and booleans as JSON spells them. Raises DataError."""
    if label_field not in row.values:
        has = ", ".join(map(str, row.values))
        raise DataError(f"{row.where}: the row has no field '{label_field}' (it has: {has}); pass --label-field.")
    value = row.values[label_field]
    if not isinstance(value, str | int | float | bool):
        raise DataError(f"{row.where}: label {value!r} is not text; write it as a string.")
    return value if isinstance(value, str) else json.dumps(value)


def row_tags(row: Row, label_field: str) -> tuple[str, ...]:
    """The tags of a row's words. Raises DataError."""
    value = row.values.get(label_field)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(f"{row.where}: field '{label_field}' must be a list of tags, found {str(value)[:40]!r}.")
    return tuple(value)


def label_index(labels: Sequence[str], label: str, row: Row) -> int:
    """Index of a row's label among ``labels``. Raises VerbalizerError if it is not one of them."""
    if label in labels:
        return labels.index(label)
    near = get_close_matches(label, labels, n=1)
    mend = f"did you mean '{near[0]}'?" if near else "correct the row, or train with this label."
    shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    raise VerbalizerError(f"{row.where}: label '{label}' is not one of the task's (labels: {shown}); {mend}")
