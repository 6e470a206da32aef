"""`Ratings`: the counts of a filled rating sheet, and their sign test."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foreword.core.json_reader import parse_json
from foreword.errors import DataError
from foreword.evaluation.rating_sheet import ROW, A, B, key_file
from foreword.text.text_file import read_utf8

_RATINGS = ("a", "b", "tie")


@dataclass(frozen=True)
class Ratings:
    """Wins and losses of one task against another in a blind rating.

    Attributes:
        task, against: their names.
        wins: rows where ``task`` was the better one.
        losses: rows where ``against`` was.
        ties: rows where neither was, those included that have the same answer twice and were left empty.
        unrated: other rows that were left empty.
    """

    task: str
    against: str
    wins: int
    losses: int
    ties: int
    unrated: int

    @classmethod
    def read(cls, sheet: Path) -> Ratings:
        """Read a sheet and its key. Raises DataError that says which row is wrong and how."""
        key = _key(key_file(sheet))
        ratings = Counter[str]()
        seen: set[str] = set()
        for cells in _cells(sheet):
            row = cells[ROW].strip()
            if row not in key["rows"] or row in seen:
                problem = "is there twice" if row in seen else "is not in the key"
                raise DataError(f"{sheet} row {row!r} {problem}; keep the column '{ROW}' as it was.")
            seen.add(row)
            ratings[_winner(cells, key["rows"][row], f"{sheet} row {row}")] += 1
        task, against = key["tasks"]
        unrated = ratings[""] + len(key["rows"]) - len(seen)
        return cls(task, against, ratings[task], ratings[against], ratings["tie"], unrated)

    @property
    def p_value(self) -> float:
        """p-value of the two-sided sign test of wins and losses."""
        return sign_test(self.wins, self.losses)

    def to_json(self) -> dict[str, Any]:
        return {"n": self.wins + self.losses + self.ties, **asdict(self), "p_value": self.p_value}

    def __str__(self) -> str:
        return (
            f"{self.task} against {self.against}: {self.wins} wins, {self.losses} losses, {self.ties} ties, "
            f"{self.unrated} not rated; two-sided sign test p = {self.p_value:.4f}"
        )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: the chance of a split at least as uneven among fair coins; ties do not count."""
    tosses = wins + losses
    tail = sum(math.comb(tosses, heads) for heads in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def _winner(cells: Mapping[str, str], order: list[str], where: str) -> str:
    """Name of the better task, ``tie``, or nothing for a row that is not rated."""
    (rating,) = (value for name, value in cells.items() if name.startswith("better"))
    rating = rating.strip().lower()
    if not rating:
        return "tie" if cells[A] == cells[B] else ""
    if rating not in _RATINGS:
        raise DataError(f"{where}: the rating is {rating!r}, expected A, B or tie; write one of them.")
    return "tie" if rating == "tie" else order[_RATINGS.index(rating)]


def _key(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"the key {file} is missing; put it beside the sheet, and give the sheet its first name again.")
    try:
        key = parse_json(read_utf8(file))
        tasks, rows = [str(task) for task in key["tasks"]], key["rows"].values()
        if len(tasks) != 2 or tasks != key["tasks"] or not all(sorted(order) == sorted(tasks) for order in rows):
            raise ValueError("its rows are not of its tasks")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the key {file} is damaged ({error}); write the sheet again.") from error
    return key


def _cells(sheet: Path) -> list[dict[str, str]]:
    """Rows of a sheet, whichever separator the spreadsheet wrote."""
    text = read_utf8(sheet)
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        names, *records = [(reader.line_num, cells) for cells in reader] or [(1, [])]
    except csv.Error as error:
        raise DataError(f"{sheet} line {reader.line_num} is not CSV: {error}; check its quotes.") from error
    names = names[1]
    if not {ROW, A, B} <= set(names) or sum(name.startswith("better") for name in names) != 1:
        raise DataError(f"{sheet} is not a rating sheet: its first line must have {ROW}, {A}, {B} and better.")
    lines = [(number, cells) for number, cells in records if any(cells)]
    if wrong := next((number for number, cells in lines if len(cells) != len(names)), None):
        raise DataError(f"{sheet} line {wrong} has not the {len(names)} columns of the first line; mend it.")
    return [dict(zip(names, cells, strict=True)) for _, cells in lines]
