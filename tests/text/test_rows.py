"""Files of examples: JSONL and CSV as people and spreadsheets write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.errors import DataError, TemplateError, UsageError
from foreword.text.rows import Row, data_digest, read_rows


def read(tmp_path, name: str, data: str | bytes):
    file = tmp_path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [(row.values, row.where.removeprefix(f"{tmp_path}/")) for row in read_rows(file)]


def refused(tmp_path, name: str, data: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, data)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_jsonl_knows_its_lines(tmp_path):
    found = read(tmp_path, "d.jsonl", '{"a": "x"}\n\n  \n{"a": 1, "b": true}\n')
    assert found == [({"a": "x"}, "d.jsonl line 1"), ({"a": 1, "b": True}, "d.jsonl line 4")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_line_ends_and_byte_order_marks(end, mark, last, tmp_path):
    lines = ['{"a": "x\u2028\u0085y"}', '{"a": "z"}']
    found = read(tmp_path, "d.jsonl", mark + end.join(lines) + last.replace("\n", end))
    assert found == [({"a": "x\u2028\u0085y"}, "d.jsonl line 1"), ({"a": "z"}, "d.jsonl line 2")]
    assert read(tmp_path, "d.csv", mark + end.join(["a", "x", "z"]) + last.replace("\n", end)) == [
        ({"a": "x"}, "d.csv line 2"),
        ({"a": "z"}, "d.csv line 3"),
    ]


def test_csv_records_over_several_lines_are_named_by_their_first(tmp_path):
    data = 'text,label\n"two\nlines",y\n\n"a ""quoted"", one",n\nlast,y\n'
    assert read(tmp_path, "d.csv", data) == [
        ({"text": "two\nlines", "label": "y"}, "d.csv line 2"),
        ({"text": 'a "quoted", one', "label": "n"}, "d.csv line 5"),
        ({"text": "last", "label": "y"}, "d.csv line 6"),
    ]


def test_tsv_is_csv_with_tabs(tmp_path):
    data = 'text\tlabel\na, 5" b\t007\n"two\nlines\t"\ty\n'
    assert read(tmp_path, "d.tsv", data) == [
        ({"text": 'a, 5" b', "label": "007"}, "d.tsv line 2"),
        ({"text": "two\nlines\t", "label": "y"}, "d.tsv line 3"),
    ]


@given(cells=st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_csv_writes_is_read_back(cells, tmp_path):
    import csv
    import io

    out = io.StringIO(newline="")
    writer = csv.writer(out)
    try:
        writer.writerows([("text", "label"), *cells])
        data = out.getvalue().encode()
    except UnicodeEncodeError:
        return
    assert [tuple(values.values()) for values, _ in read(tmp_path, "d.csv", data)] == cells


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.jsonl", "", "d.jsonl has no examples"),
        ("d.csv", "", "d.csv has no examples"),
        ("d.csv", "text,label\n", "d.csv has no examples; give at least one line of data."),
        ("d.jsonl", '{"a": 1}\n{"a"\n', "d.jsonl line 2 is not JSON (Expecting ':' delimiter, column 1)"),
        ("d.jsonl", "[1]\n", "d.jsonl line 1 is list, expected an object"),
        ("d.csv", "a,b\nx,y\nx\n", "d.csv line 3 has 1 columns, the header 2; quote fields with commas."),
        ("d.csv", "a,b\nx,y,z\n", "d.csv line 2 has 3 columns, the header 2"),
        ("d.csv", 'a,b\nx,"y\n', "d.csv line 2 is not CSV: "),
        ("d.csv", "a,b,a\nx,y,z\n", "d.csv has the column 'a' twice; give every column its own name."),
        ("d.tsv", "a\tb\nx\ty\tz\n", "d.tsv line 2 has 3 columns, the header 2; quote fields with tabs."),
        ("d.tsv", 'a\tb\nx\t"y" z\n', "d.tsv line 2 is not TSV: "),
        ("d.txt", "x", "d.txt has to end in .jsonl, .csv, .tsv or .parquet; convert it to one of them."),
        ("d.jsonl", b'{"a": "x"}\n{"a": "\xe9"}\n', "d.jsonl line 2 is not UTF-8 text (byte 18); save it as UTF-8."),
    ],
)
def test_what_is_wrong_is_said_with_its_place(name, data, message, tmp_path):
    said = refused(tmp_path, name, data)
    assert said.startswith(message.split(", column")[0])
    assert said.endswith(".")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"nothing.csv cannot be read: No such file or directory; check the path"):
        read_rows(tmp_path / "nothing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_rows(tmp_path / "folder.csv")


def test_errors_inside_a_row_begin_with_its_place():
    row = Row({}, "d.csv line 7")
    with pytest.raises(TemplateError, match=r"^d.csv line 7: no$"), row.error_context():
        raise TemplateError("no")
    with pytest.raises(UsageError, match=r"^d.csv line 7: no$"), row.error_context():
        raise UsageError("d.csv line 7: no")


def test_the_digest_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_text(json.dumps({"a": 1}))
    (tmp_path / "b").write_text(json.dumps({"a": 1}))
    (tmp_path / "c").write_text(json.dumps({"a": 2}))
    assert data_digest(tmp_path / "a") == data_digest(tmp_path / "b") != data_digest(tmp_path / "c")
