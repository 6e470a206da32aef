"""The one reader of JSON: what it reads, and one kind of error at every bound."""

from __future__ import annotations

import json

import pytest

from foreword.core.json_reader import (
    MAX_NESTING,
    InvalidJson,
    parse_json,
    parse_json_at,
    read_json,
    read_json_file,
    read_json_object,
)
from foreword.errors import CorruptFile, DataError


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\xef\xbb\xbf [1, 2.5e3, null]\n", [1, 2500.0, None]),
        ("\ufeff{}", {}),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        (f'"{"9" * 5000}"', "9" * 5000),
        ("1" * 308, int("1" * 308)),
        ('{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_reads_what_json_is(data: str | bytes, value: object) -> None:
    assert read_json(data, "x") == value


@pytest.mark.parametrize("depth", [MAX_NESTING, MAX_NESTING + 1, 900, 200_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_bounded(depth: int, opening: str, closing: str) -> None:
    text = opening * depth + ("0" if opening != "[" else "") + closing * depth
    if depth <= MAX_NESTING:
        assert json.dumps(read_json(text, "x"), separators=(",", ":")) == text
        return
    with pytest.raises(DataError, match=r"^rows\.json: lists and objects are nested deeper than 128; split them\.$"):
        read_json(text, "rows.json", error=DataError, mend="split them")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("9" * 309, "x: a number has more than 308 digits; "),
        ("9" * 4301, "x: a number has more than 308 digits; "),
        ('{"a": [-' + "9" * 309 + "]}", "x: a number has more than 308 digits; "),
        ("[1e999]", "x: the number 1e999 is too large; "),
        ("[NaN]", "x: NaN is not JSON; "),
        ("[-Infinity]", "x: -Infinity is not JSON; "),
        ('{"a": "\\ud800"}', "x: the text has half of a surrogate pair; "),
        ('{"\\uDFFF": 1}', "x: the text has half of a surrogate pair; "),
        ('"\ud800"', "x: the text has half of a surrogate pair; "),
        (b"[\xff]", "x: byte 1 is not UTF-8; "),
        (b"", r"x is not JSON \(Expecting value, line 1 column 1\); "),
        ("[1,\n 2", r"x is not JSON \(Expecting ',' delimiter, line 2 column 3\); "),
        ("1 2", r"x is not JSON \(Extra data, line 1 column 2\); "),
    ],
)
def test_everything_else_is_one_error(data: str | bytes, reason: str) -> None:
    with pytest.raises(CorruptFile, match=f"^{reason}write it anew\\.$"):
        read_json(data, "x", error=CorruptFile)


def test_options() -> None:
    with pytest.raises(DataError, match="key 'a' stands twice"):
        read_json('{"b": 1, "a": 1, "a": 2}', "x", error=DataError, unique=True)
    with pytest.raises(DataError, match="control character"):
        read_json('"a\nb"', "x", error=DataError)
    assert read_json('"a\nb"', "x", line_breaks=True) == "a\nb"
    assert read_json("[Infinity]", "x", constants=True) == [float("inf")]


def test_a_value_within_a_text() -> None:
    assert parse_json_at('x {"a": 1} y', 1) == ({"a": 1}, 10)
    with pytest.raises(InvalidJson):
        parse_json("  ")


def test_files(tmp_path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(CorruptFile, match=r"config\.json cannot be read \(No such file or directory\); "):
        read_json_file(file, error=CorruptFile)
    file.write_text("[1]")
    assert read_json_file(file) == [1]
    with pytest.raises(CorruptFile, match=r"config\.json must be a JSON object, found a list; "):
        read_json_object(file, error=CorruptFile)
    with pytest.raises(CorruptFile, match="is larger than 2 bytes"):
        read_json_file(file, error=CorruptFile, max_bytes=2)
