"""`LongRows`: what becomes of rows with more tokens than a model takes: refused, left out, or cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from foreword.errors import DataError, SettingError
from foreword.text.row import Row

MEND = "shorten the row, or pass --long-rows skip or --long-rows 'cut FIELD'"


@dataclass(frozen=True)
class FittedRows:
    """Rows that fit.

    Attributes:
        rows: in their order.
        skipped: how many were left out.
        cut: how many had a field cut.
    """

    rows: list[Row]
    skipped: int = 0
    cut: int = 0

    def note(self, of: int, what: str) -> str:
        """A clause about what was done to ``of`` rows; empty if nothing was."""
        if not (self.skipped or self.cut):
            return ""
        done = f"left out {self.skipped}" if self.skipped else f"cut the end of {what} in {self.cut}"
        return f"{done} of {of} rows, which were too long"


@dataclass(frozen=True)
class LongRows:
    """What to do with rows that are too long.

    Attributes:
        action: ``refuse``, ``skip`` or ``cut``.
        field: whose end is cut, so that the rest of the template and the answer remain; ``None`` for the only one.
    """

    action: str = "refuse"
    field: str | None = None

    @classmethod
    def parse(cls, source: str | None) -> LongRows:
        """From ``refuse``, ``skip``, or ``cut FIELD``. Raises SettingError."""
        action, _, field = (source or "refuse").strip().partition(" ")
        if action not in ("refuse", "skip", "cut") or (field and action != "cut"):
            raise SettingError("long_rows", f"--long-rows must be refuse, skip or 'cut FIELD', got {source!r}.")
        return cls(action, field.strip() or None)

    def of_fields(self, fields: Sequence[str]) -> LongRows:
        """The same, with the field to cut checked against those of a template. Raises SettingError."""
        if self.action != "cut":
            return self
        field = self.field or (fields[0] if len(set(fields)) == 1 else None)
        if field not in fields:
            what = f"has no field {field!r}" if field else "has several fields"
            listed = ", ".join(dict.fromkeys(fields)) or "none"
            raise SettingError("long_rows", f"the template {what} to cut; name one of its fields ({listed}).")
        return replace(self, field=field)

    def fit(self, rows: Sequence[Row], fits: Callable[[Row], bool]) -> FittedRows:
        """Leave rows out or cut them until all fit; with ``refuse`` they stay, for the caller to refuse.

        Args:
            fits: whether a row is short enough.

        Raises DataError if a row is too long without the text of the field, or none is left.
        """
        if self.action == "refuse":
            return FittedRows(list(rows))
        fitted: list[Row] = []
        cut = 0
        for row in rows:
            if fits(row):
                fitted.append(row)
            elif self.action == "cut":
                fitted.append(self._cut(row, fits))
                cut += 1
        if rows and not fitted:
            raise DataError(
                f"all {len(rows)} rows are too long (the first: {rows[0].where}); use a longer --max-length."
            )
        return FittedRows(fitted, len(rows) - len(fitted), cut)

    def _cut(self, row: Row, fits: Callable[[Row], bool]) -> Row:
        """The row with as much of the field's beginning as fits."""
        assert self.field is not None
        name = self.field if self.field in row.values else f"{self.field}?"
        text = row.values.get(name)
        if not isinstance(text, str):
            raise DataError(f"{row.where}: field '{name}' is no text that could be cut; use --long-rows skip.")
        shortest, longest = len(text) - len(text.lstrip()) + 1, len(text)  # characters that fit, and that do not
        if not fits(_with(row, name, text[:shortest])):
            raise DataError(f"{row.where}: the row is too long even without field '{name}'; use --long-rows skip.")
        while longest - shortest > 1:
            middle = (shortest + longest) // 2
            if fits(_with(row, name, text[:middle])):
                shortest = middle
            else:
                longest = middle
        whole = _with(row, name, text[:shortest])
        stripped = _with(row, name, text[:shortest].rstrip())
        return stripped if fits(stripped) else whole


def _with(row: Row, name: str, text: str) -> Row:
    return replace(row, values={**row.values, name: text})
