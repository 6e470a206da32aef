"""Rows of CSV and TSV text. No row is ever lost or joined with another in silence.

CSV quotes as RFC 4180 says. TSV comes in two kinds that look alike: most programs write no quotes (GLUE, pandas with
``quoting=3``), so that ``"`` is a character, and spreadsheets quote a cell that holds a tab, a line break or ``"``.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foreword.errors import DataError, SettingError
from foreword.text.row import Row

NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
csv.field_size_limit(1 << 30)  # a cell may be a whole document, and Python's bound is 128 KiB
_QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')
# A joined row whose every line would be a row by itself, and of so many lines, is taken for what it looks like.
_MANY_LINES = 4


@dataclass(frozen=True)
class Layout:
    """How a CSV or TSV file is laid out, where that does not follow from the file.

    Attributes:
        columns: their names, for a file without a header; empty if the first line is the header.
        delimiter: the character between cells; ``None`` to find it out.
    """

    columns: tuple[str, ...] = ()
    delimiter: str | None = None

    @classmethod
    def parse(cls, columns: str | Sequence[str] | None, delimiter: str | None) -> Layout:
        """From settings: names between commas, and a character, ``\\\\t`` or ``tab``. Raises SettingError."""
        names = columns.split(",") if isinstance(columns, str) else list(columns or ())
        names = [str(name).strip() for name in names]
        if columns is not None and (not names or not all(names) or len(set(names)) != len(names)):
            raise SettingError("columns", f"--columns must name every column once, as in text,label; got {columns!r}.")
        found = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter)
        if found is not None and (len(found) != 1 or found in '"\r\n'):
            raise SettingError("delimiter", f"--delimiter must be one character, or tab; got {delimiter!r}.")
        return cls(tuple(names), found)

    def require_none(self, name: str) -> None:
        """Raise SettingError unless this is the layout of files that say it themselves; ``name`` is such a file."""
        if self != Layout():
            key = "columns" if self.columns else "delimiter"
            raise SettingError(key, f"--{key} is for CSV and TSV files, and {name} is none; leave it out.")


@dataclass(frozen=True)
class DelimitedText:
    """The records of a text, and what was seen on the way.

    Attributes:
        rows: cells stay text, whatever they look like: a label ``007`` is not a number.
        what: the format in a few words.
        warnings: what may be wrong and was read as it stands.
    """

    rows: list[Row]
    what: str
    warnings: tuple[str, ...] = ()


Record = tuple[int, list[str]]
"""The number of a record's first line, and its cells."""


def delimited_rows(name: str, text: str, layout: Layout, *, tabs: bool = False) -> DelimitedText:
    """The rows of a text.

    Args:
        name: of the file, for errors.
        tabs: whether the file's name says that tabs stand between cells.

    Raises:
        DataError: a line has more or fewer cells than the header, or quotes that do not fit together.
    """
    between = layout.delimiter or ("\t" if tabs else _sniff(name, text, layout))
    if between == "\t":
        records, quoted = _tab_records(name, text, layout)
        warnings: tuple[str, ...] = ()
    else:
        records, quoted = _quoted_records(name, text, between), True
        _check_blanks(name, text, records, between)
        warnings = _check_joined(name, text, records, between)
    header, records = _header(name, layout, records)
    for number, cells in records:
        if len(cells) != len(header):
            raise _uneven(name, number, len(cells), len(header), between, layout)
    rows = [Row(dict(zip(header, cells, strict=True)), f"{name} line {number}") for number, cells in records]
    kind = "CSV" if between == "," else f"CSV with {NAMES.get(between, repr(between))}"
    kind = ("TSV" if quoted else "TSV without quoting") if between == "\t" else kind
    return DelimitedText(rows, kind + (", without a header" if layout.columns else ""), warnings)


def _header(name: str, layout: Layout, records: list[Record]) -> tuple[list[str], list[Record]]:
    """The names of the columns, and the records below them."""
    if layout.columns:
        first = [cell.strip().casefold() for cell in records[0][1]] if records else []
        if first == [column.casefold() for column in layout.columns]:
            raise DataError(f"{name} line {records[0][0]} is a header, which --columns is in place of; leave it out.")
        return list(layout.columns), records
    header = [cell.strip() for cell in records[0][1]] if records else []
    if twice := next((column for column, count in Counter(header).items() if count > 1), None):
        raise DataError(f"{name} has the column {twice!r} twice; give every column its own name.")
    return header, records[1:]


def _uneven(name: str, number: int, cells: int, columns: int, between: str, layout: Layout) -> DataError:
    than = "--columns" if layout.columns else "the header"
    mend = f"quote fields with {NAMES.get(between, repr(between))}"
    return DataError(f"{name} line {number} has {cells} columns, {than} {columns}; {mend}.")


def _sniff(name: str, text: str, layout: Layout) -> str:
    """What stands between the cells of the first line outside of quotes; refused if it may be several things."""
    first = re.sub(r'"(?:[^"]|"")*"', "", _lines(text)[0]) if text.strip() else ""
    found = [each for each in (",", ";", "\t") if each in first]
    if len(found) < 2:
        return found[0] if found else ","
    fitting = [each for each in found if _fits(name, text, each, layout)]
    if len(fitting) == 1:
        return fitting[0]
    listed = " and ".join(NAMES[each] for each in found)
    raise DataError(f"{name}: its first line has {listed}; say with --delimiter which of them stands between cells.")


def _fits(name: str, text: str, between: str, layout: Layout) -> bool:
    try:
        counts = {len(cells) for _, cells in _quoted_records(name, text, between)}
    except DataError:
        return False
    return len(counts) == 1 and (not layout.columns or counts == {len(layout.columns)})


def _quoted_records(name: str, text: str, between: str) -> list[Record]:
    return list(_read(name, text, csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True), between))


def _plain_records(name: str, text: str, between: str) -> list[Record]:
    lines = [line for line in _lines(text) if line]
    reader = csv.reader(lines, delimiter=between, quoting=csv.QUOTE_NONE, escapechar=None)
    numbers = [number for number, line in enumerate(_lines(text), 1) if line]
    return list(zip(numbers, (cells for _, cells in _read(name, "", reader, between)), strict=True))


def _read(name: str, text: str, reader: Iterator[list[str]], between: str) -> Iterator[Record]:
    """Records with the number of their first line; a quoted field may span several lines."""
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = getattr(reader, "line_num", 0) + 1
    except csv.Error as error:
        kind = "TSV" if between == "\t" else "CSV"
        raise DataError(f"{name} line {begins} is not {kind}: {error}; check its quotes.") from error


def _lines(text: str) -> list[str]:
    """Lines without their ends. Not splitlines(): U+2028 and U+0085 may stand inside a cell."""
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="")] or [""]


def _tab_records(name: str, text: str, layout: Layout) -> tuple[list[Record], bool]:
    """Records of a TSV text, and whether its cells are quoted."""
    plain = _plain_records(name, text, "\t")
    opened = [cell for _, cells in plain for cell in cells if cell.startswith('"')]
    if not opened or not plain:
        return plain, False
    width = len(layout.columns) or len(plain[0][1])
    try:
        quoted = _quoted_records(name, text, "\t")
    except DataError:
        return plain, False
    width_quoted = len(layout.columns) or len(quoted[0][1])
    plain_fits = all(len(cells) == width for _, cells in plain)
    quoted_fits = all(len(cells) == width_quoted for _, cells in quoted)
    if not (plain_fits and quoted_fits):
        return (quoted, True) if quoted_fits else (plain, False)
    if len(quoted) != len(plain):
        if width == 1:
            raise _unclear(name, "a cell that begins with a quote")
        return plain, False
    return _same_lines(name, plain, quoted, opened)


def _same_lines(name: str, plain: list[Record], quoted: list[Record], opened: list[str]) -> tuple[list[Record], bool]:
    """Choose between two readings of the same lines by who writes such quotes.

    A program that quotes where it must doubles the quotes inside, or it quotes all its cells, the header included.
    """
    if all(_QUOTED_CELL.fullmatch(cell) for cell in plain[0][1]):
        return quoted, True
    doubled = ['""' in cell[1:-1] for cell in opened]
    if all(doubled):
        return quoted, True
    if any(doubled):
        raise _unclear(name, "some cells that begin with a quote have doubled quotes and others not")
    return plain, False


def _unclear(name: str, what: str) -> DataError:
    return DataError(
        f"{name}: {what}, so it cannot be told whether quotes are part of the text; write it as JSON Lines or as CSV."
    )


def _plain_cells(line: str, between: str) -> list[str]:
    """The cells of a line that is read by itself, where a quote that opens a cell and does not close is a character."""
    edge = re.escape(between)
    return re.sub(rf'(?:^|(?<={edge}))"(?:[^"]|"")*"(?={edge}|$)', "quoted", line).split(between)


def _check_blanks(name: str, text: str, records: list[Record], between: str) -> None:
    """Refuse blanks in front of a quoted field: the blanks and the quotes would be part of its text."""
    edge = re.escape(between)
    # Inside a quoted field a quote is doubled, or it ends the field.
    if not re.search(rf'{edge} +"[^"{edge}\r\n]', text):
        return
    for number, cells in records:
        if any(re.fullmatch(r' +"[^"]+" *', cell) for cell in cells):
            raise DataError(f"{name} line {number} has blanks in front of a quoted field; take them out.")


def _check_joined(name: str, text: str, records: list[Record], between: str) -> tuple[str, ...]:
    """Warn of, or refuse, quoted fields that span lines which would each be a record: a quote too many joins rows.

    A row is refused where the lines that it would be made of have the values of other rows in one column, such as
    their labels, or where they are many.
    """
    lines, width = _lines(text), len(records[0][1]) if records else 0
    suspects = []
    starts = [begins for begins, _ in records]
    for begins, ends in zip(starts, [*starts[1:], len(lines) + 1], strict=False):
        parts = [_plain_cells(line, between) for line in lines[begins - 1 : ends - 1] if line]
        if len(parts) > 1 and all(len(cells) == width for cells in parts):
            suspects.append((begins, begins + len(parts) - 1, parts))
    if not suspects:
        return ()
    doubtful = {begins for begins, _, _ in suspects}
    others = [Counter(cells[at] for begin, cells in records if begin not in doubtful) for at in range(width)]
    for begins, ends, parts in suspects:
        columns = ([cells[at].strip('"') for cells in parts] for at in range(width))
        known = any(
            all(value and other[value] for value in column) for column, other in zip(columns, others, strict=True)
        )
        if width > 1 and (known or len(parts) >= _MANY_LINES):
            raise DataError(
                f"{name} lines {begins} to {ends} would be one row, joined by a quote that opens a field; each of them "
                'is a row by itself, so double the quote ("") in a quoted field, or write the file as JSON Lines.'
            )
    begins, ends, _ = suspects[0]
    more = f" ({len(suspects)} such rows)" if len(suspects) > 1 else ""
    return (f"{name} lines {begins} to {ends} are one row, with line breaks in a quoted field{more}",)
