"""Files of examples: JSONL and CSV as people and spreadsheets write them."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.errors import DataError, SettingError, TemplateError, UsageError
from foreword.text.delimited import Layout
from foreword.text.rows import Row, data_digest, read_data, read_rows


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


ROWS = [{"text": "good, cheap", "label": "y"}, {"text": "你\n好", "label": "n"}]


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "\n".join(json.dumps(row, indent=4) for row in ROWS),
        json.dumps({"text": {"0": ROWS[0]["text"], "7": ROWS[1]["text"]}, "label": {"0": "y", "7": "n"}}),
        json.dumps({"0": ROWS[0], "1": ROWS[1]}),
        json.dumps({"columns": ["text", "label"], "index": [0, 1], "data": [list(row.values()) for row in ROWS]}),
        json.dumps({"schema": {"fields": [{"name": "text"}]}, "data": ROWS}),
        json.dumps({"version": "1", "data": ROWS}),
        json.dumps({"text": [row["text"] for row in ROWS], "label": ["y", "n"]}),
    ],
)
def test_json_of_any_shape(data, tmp_path):
    for mark, end in (("", "\n"), ("\ufeff", "\r\n"), ("", "\r")):
        found = read(tmp_path, "d.json", mark + data.replace("\n", end))
        assert [values for values, _ in found] == ROWS


def test_pretty_objects_know_their_lines(tmp_path):
    found = read(tmp_path, "d.jsonl", '{\n "a": 1\n}\n\n{\n "a": 2\n}\n')
    assert found == [({"a": 1}, "d.jsonl line 1"), ({"a": 2}, "d.jsonl line 5")]


@pytest.mark.parametrize(
    "row", [{"tokens": ["a", "b"], "tags": ["O", "B"]}, {"t": {"en": "x", "de": "y"}}, {"messages": [{"role": "user"}]}]
)
def test_one_row_that_holds_lists_or_objects_is_a_row(row, tmp_path):
    assert read(tmp_path, "d.jsonl", json.dumps(row)) == [(row, "d.jsonl line 1")]


def test_packed_files(tmp_path):
    data = gzip.compress(b"text,label\na,b\n")
    assert read(tmp_path, "d.csv.gz", data) == [({"text": "a", "label": "b"}, "d.csv.gz line 2")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_semicolons_and_tabs_are_found_in_the_header(end, tmp_path):
    data = end.join(['"Tweet text";label', "good, cheap;y", '"a;b";n', ""])
    rows = [
        ({"Tweet text": "good, cheap", "label": "y"}, "d.csv line 2"),
        ({"Tweet text": "a;b", "label": "n"}, "d.csv line 3"),
    ]
    assert read(tmp_path, "d.csv", data) == rows
    assert [
        values
        for values, _ in read(tmp_path, "d.csv", data.replace(chr(34), "").replace("a;b", "a|b").replace(";", "\t"))
    ] == [
        {"Tweet text": "good, cheap", "label": "y"},
        {"Tweet text": "a|b", "label": "n"},
    ]
    both = read(tmp_path, "d.csv", end.join(["text;label, or none", "a;b", ""]))
    assert [values for values, _ in both] == [{"text": "a", "label, or none": "b"}]


def test_a_delimiter_and_columns_are_given(tmp_path):
    (tmp_path / "d.csv").write_text("a;b|y\n007|n\n")
    layout = Layout.parse("text, label", "|")
    assert [row.values for row in read_rows(tmp_path / "d.csv", layout)] == [
        {"text": "a;b", "label": "y"},
        {"text": "007", "label": "n"},
    ]
    (tmp_path / "e.csv").write_text("Text,label\na,b\n")
    with pytest.raises(DataError, match="line 1 is a header, which --columns is in place of"):
        read_rows(tmp_path / "e.csv", Layout.parse("text,label", None))
    with pytest.raises(DataError, match="line 1 has 2 columns, --columns 3"):
        read_rows(tmp_path / "e.csv", Layout.parse("text,label,more", None))
    (tmp_path / "d.jsonl").write_text('{"a": 1}')
    with pytest.raises(SettingError, match="--columns is for CSV and TSV files"):
        read_rows(tmp_path / "d.jsonl", Layout.parse("text", None))
    for columns, delimiter in (("a,a", None), ("a,,b", None), (None, "ab"), (None, '"')):
        with pytest.raises(SettingError):
            Layout.parse(columns, delimiter)


def test_quotes_in_tsv_are_characters_unless_they_are_written_as_quotes(tmp_path):
    plain = 'label\tsentence\n1\t"best bread\n0\tcold "soup"\n1\tsize 5"\n0\t"quick"\n'
    texts = ['"best bread', 'cold "soup"', 'size 5"', '"quick"']
    assert [values["sentence"] for values, _ in read(tmp_path, "d.tsv", plain)] == texts
    spreadsheet = 'label\tsentence\n1\t"a ""b"""\n0\tc "d"\n'
    assert [values["sentence"] for values, _ in read(tmp_path, "d.tsv", spreadsheet)] == ['a "b"', 'c "d"']
    broken = 'label\tsentence\n1\t"a\tb\nc"\n0\td\n'
    assert [values["sentence"] for values, _ in read(tmp_path, "d.tsv", broken)] == ["a\tb\nc", "d"]
    everything = '"label"\t"sentence"\n"1"\t"a"\n'
    assert read(tmp_path, "d.tsv", everything)[0][0] == {"label": "1", "sentence": "a"}


def test_a_quoted_field_of_several_lines_is_told_where_it_may_be_several_rows(tmp_path):
    (tmp_path / "d.csv").write_text('text,label\n"Dear all,\ncome, please",y\nmore,n\n')
    found = read_data(tmp_path / "d.csv")
    assert [row.values for row in found.rows] == [
        {"text": "Dear all,\ncome, please", "label": "y"},
        {"text": "more", "label": "n"},
    ]
    assert found.warnings == ()
    (tmp_path / "d.csv").write_text('text,label\n"Dear all,\ncome",y\nmore,n\n')
    assert (
        "d.csv lines 2 to 3 are one row, with line breaks in a quoted field"
        in read_data(tmp_path / "d.csv").warnings[0]
    )
    (tmp_path / "d.csv").write_text('text\n"stray\nmore\nwow"\n')
    assert len(read_data(tmp_path / "d.csv").warnings) == 1


def test_tsv_is_csv_with_tabs(tmp_path):
    data = 'text\tlabel\na, 5" b\t007\n"two\nlines\t"\ty\n'
    assert read(tmp_path, "d.tsv", data) == [
        ({"text": 'a, 5" b', "label": "007"}, "d.tsv line 2"),
        ({"text": "two\nlines\t", "label": "y"}, "d.tsv line 3"),
    ]


# Without commas: a cell of several lines that are each like a record is refused, see below.
TEXTS = st.characters(exclude_characters=",")


@given(cells=st.lists(st.tuples(st.text(TEXTS), st.text(TEXTS, min_size=1)), min_size=1, max_size=5))
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
        ("d.jsonl", "[1]\n[2]\n", "d.jsonl line 1 is list, expected an object"),
        ("d.jsonl", '[{"a": 1}, 2]', "d.jsonl row 2 is int, expected an object"),
        (
            "d.json",
            '[\n{"a": 1},\n{"a": }]',
            "d.json line 3 is not JSON (Expecting value, column 7); mend the array, or",
        ),
        ("d.json", "[]", "d.json has no examples"),
        ("d.json", '{"a": {"0": 1}, "b": {"1": 2}}', "d.json has columns with different rows; write one object a line"),
        ("d.json", '{"1": {"0": 1}, "2": {"0": 2}}', "d.json: rows and columns both have numbers for names"),
        ("d.json", '{"columns": ["a", "b"], "data": [[1]]}', "d.json row 1 does not have the 2 cells of the columns"),
        ("d.json", '{"a": [1, 2], "b": [1]}', "d.json has columns of different lengths"),
        ("d.csv", "text;label,main\na;b,c\n", "d.csv: its first line has commas and semicolons; say with --delimiter"),
        ("d.csv", "a;b\nx\n", "d.csv line 2 has 1 columns, the header 2; quote fields with semicolons."),
        ("d.csv", 'a,b\n1,x\n1,"y\n2,z\n2,w"\n2,v\n', "d.csv lines 3 to 5 would be one row, joined by a quote"),
        (
            "d.tsv",
            'a\n"x\ny"\n',
            "d.tsv: a cell that begins with a quote, so it cannot be told whether quotes are part",
        ),
        ("d.tsv", 'a\tb\n"x"\t1\n"y ""z"""\t2\n', "d.tsv: some cells that begin with a quote have doubled quotes"),
        (
            "d.csv",
            "text\n".encode("utf-16"),
            "d.csv is UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 d.csv).",
        ),
        ("d.csv", "text\n".encode("utf-16-le"), "d.csv is UTF-16 text"),
        ("d.csv.gz", b"text\n", "d.csv.gz is not a whole gzip file"),
        ("d.csv", "a,b\nx,y\nx\n", "d.csv line 3 has 1 columns, the header 2; quote fields with commas."),
        ("d.csv", "a,b\nx,y,z\n", "d.csv line 2 has 3 columns, the header 2"),
        ("d.csv", 'a,b\nx,"y\n', "d.csv line 2 is not CSV: "),
        ("d.csv", "a,b,a\nx,y,z\n", "d.csv has the column 'a' twice; give every column its own name."),
        ("d.tsv", "a\tb\nx\ty\tz\n", "d.tsv line 2 has 3 columns, the header 2; quote fields with tabs."),
        ("d.txt", "x", "d.txt has to end in .jsonl, .json, .csv, .tsv or .parquet; convert it to one of them."),
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


def test_blanks_in_front_of_a_quoted_field_are_refused(tmp_path):
    said = refused(tmp_path, "d.csv", 'text, label\nfine,x\n"good, yes", "pos"\n')
    assert said == "d.csv line 3 has blanks in front of a quoted field; take them out."
    rows = read(tmp_path, "e.csv", 'text,label\n" ""quoted""","a, "\nhe said "no", x\n')
    assert [row for row, _ in rows] == [
        {"text": ' "quoted"', "label": "a, "},
        {"text": 'he said "no"', "label": " x"},
    ]
