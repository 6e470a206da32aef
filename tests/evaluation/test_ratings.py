"""A rating sheet on its way: written, filled as people fill it, and read back."""

from __future__ import annotations

import csv
import json
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import DataError, UsageError
from foreword.evaluation.rating_sheet import BETTER, A, B, key_file, write_sheet
from foreword.evaluation.ratings import Ratings, sign_test
from foreword.evaluation.report import Prediction, Report
from foreword.text.rows import Row

N = 40


def report(answers: list[str]) -> Report:
    return Report(len(answers), {}, [Prediction("x", answer) for answer in answers])


@pytest.fixture
def sheet(tmp_path):
    """Answers that say whose they are; the last row has the same one twice."""
    file = tmp_path / "sheet.csv"
    rows = [Row({"text": f"问题, {i}\nnext", "tokens": ["a", "b"], "label": "x"}, f"line {i}") for i in range(N)]
    mine, other = ([f"{who} {i}" for i in range(N - 1)] + ["same"] for who in ("mine", "other"))
    assert write_sheet(file, ["text", "tokens"], rows, {"mine@1": report(mine), "base": report(other)}, seed=3) == 1
    return file


def lines(file, **reading) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as handle:
        return list(csv.DictReader(handle, **reading))


def fill(file, verdict, delimiter=",", encoding="utf-8-sig"):
    """Write a verdict into every row, as a spreadsheet would save it."""
    rows = lines(file)
    for row in rows:
        row[BETTER] = verdict(row)
    with file.open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def mine_first(row) -> str:
    return " a" if row[A].startswith("mine") else "B "


def test_the_sheet_hides_whose_answers_they_are(sheet):
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf")
    rows = lines(sheet)
    assert list(rows[0]) == ["row", "input: text", "input: tokens", "answer A", "answer B", BETTER, "comment"]
    assert [row["row"] for row in rows] == [str(i) for i in range(1, N + 1)]
    assert (rows[4]["input: text"], rows[4]["input: tokens"]) == ("问题, 4\nnext", "a b")
    assert all(row[BETTER] == row["comment"] == "" for row in rows)
    assert "mine@1" not in sheet.read_text(encoding="utf-8")
    first = [row[A].startswith("mine") for row in rows]
    assert 8 < sum(first) < N - 8
    key = json.loads(key_file(sheet).read_text())
    assert [key["rows"][row["row"]][0] == "mine@1" for row in rows][: N - 1] == first[: N - 1]


def test_the_order_is_drawn_by_the_seed(sheet, tmp_path):
    def drawn(name: str, seed: int) -> str:
        reports = {"one": report(["1"] * N), "two": report(["2"] * N)}
        write_sheet(tmp_path / name, [], [Row({}, "x")] * N, reports, seed)
        return (tmp_path / name).read_text()

    assert drawn("a", 1) == drawn("b", 1) != drawn("c", 2)


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_ratings_come_back(sheet, delimiter, encoding):
    def verdict(row) -> str:
        number = int(row["row"])
        if number <= 20:
            return mine_first(row)
        return "TIE" if number <= 25 else "B" if number <= 30 and row[A].startswith("mine") else ""

    lost = sum(row[A].startswith("mine") for row in lines(sheet)[25:30])
    fill(sheet, verdict, delimiter, encoding)
    found = Ratings.read(sheet)
    # The last row has the same answer twice: empty, it is a tie.
    assert found == Ratings("mine@1", "base", wins=20, losses=lost, ties=6, unrated=N - 26 - lost)
    assert found.to_json()["p_value"] == sign_test(20, lost)
    assert str(found).startswith(f"mine@1 against base: 20 wins, {lost} losses, 6 ties, {N - 26 - lost} not rated;")


def test_rows_that_were_deleted_are_not_rated(sheet):
    fill(sheet, mine_first)
    begun = sheet.read_bytes().split(b"\r\n")[:11]
    sheet.write_bytes(b"\r\n".join([*begun, b",,,,,,", b""]))
    found = Ratings.read(sheet)
    assert (found.wins, found.unrated) == (10, N - 10)


def test_sign_test():
    # 9 of 10 heads: 2 * (1 + 10) / 1024; scipy.stats.binomtest(9, 10).pvalue is the same.
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(0.021484375)
    assert sign_test(0, 0) == sign_test(3, 3) == sign_test(3, 4) == 1.0
    assert sign_test(6000, 5800) == pytest.approx(0.0668, abs=1e-3)


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_p_value_is_the_mass_of_splits_as_uneven(wins, losses):
    tosses, gap = wins + losses, abs(wins - losses)
    mass = sum(comb(tosses, heads) for heads in range(tosses + 1) if abs(2 * heads - tosses) >= gap)
    assert sign_test(wins, losses) == pytest.approx(mass / 2**tosses)


def test_nothing_in_the_sheet_is_a_formula(tmp_path):
    file = tmp_path / "sheet.csv"
    reports = {"one": report(["=1+1"]), "two": report(["-2"])}
    write_sheet(file, ["text"], [Row({"text": "@SUM(A1)"}, "x")], reports)
    (row,) = lines(file)
    assert {row[A], row[B]} == {"'=1+1", "'-2"}
    assert row["input: text"] == "'@SUM(A1)"


def test_a_sheet_is_never_written_over(sheet):
    before = sheet.read_bytes()
    with pytest.raises(UsageError, match=r"sheet\.csv exists, and there may be ratings in it"):
        write_sheet(sheet, [], [], {"one": report([]), "two": report([])})
    assert sheet.read_bytes() == before


def test_a_sheet_is_of_two_tasks(tmp_path):
    with pytest.raises(UsageError, match="of two different tasks, got 1"):
        write_sheet(tmp_path / "x.csv", [], [], {"one": report([])})


def rename_key(sheet):
    key_file(sheet).rename(sheet.with_name("elsewhere.json"))


def break_key(sheet):
    key_file(sheet).write_text('{"tasks": ["a", "b"], "rows": {"1": ["a", "c"]}}')


def rewrite(sheet, old: str, new: str):
    sheet.write_bytes(sheet.read_bytes().replace(old.encode(), new.encode(), 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (rename_key, r"the key .*sheet\.csv\.key\.json is missing; put it beside the sheet"),
        (break_key, r"the key .* is damaged \(its rows are not of its tasks\)"),
        (lambda sheet: key_file(sheet).write_text("[]"), "the key .* is damaged"),
        (lambda sheet: fill(sheet, lambda row: "left"), "row 1: the rating is 'left', expected A, B or tie"),
        (lambda sheet: rewrite(sheet, "\n7,", "\n6,"), "row '6' is there twice"),
        (lambda sheet: rewrite(sheet, "\n7,", "\n77,"), "row '77' is not in the key; keep the column 'row'"),
        (lambda sheet: rewrite(sheet, "answer A", "A"), "is not a rating sheet"),
        (lambda sheet: rewrite(sheet, "better", "worse"), "is not a rating sheet"),
        (lambda sheet: rewrite(sheet, "\n7,", "\n7,,"), "has not the 7 columns of the first line"),
        (lambda sheet: sheet.write_bytes(sheet.read_text("utf-8").encode("gb18030")), "is not UTF-8 text"),
    ],
)
def test_a_damaged_sheet_is_refused(sheet, damage, said):
    damage(sheet)
    with pytest.raises(DataError, match=said):
        Ratings.read(sheet)
