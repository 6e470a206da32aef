"""Parquet files and Hub data sets, the latter as folders that `datasets` reads the same way."""

from __future__ import annotations

import datetime
import importlib.util
import json
from decimal import Decimal

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest

from foreword.errors import DataError
from foreword.text.hub import HubDataset
from foreword.text.rows import Row, data_digest, read_rows

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
        "meta": {"kind": datasets.ClassLabel(names=["news", "mail"])},
    }
)
COLUMNS = {
    "text": ["a", "b", "c"],
    "label": [1, 0, -1],
    "tags": [[0, 1], [], [1]],
    "meta": [{"kind": 0}, {"kind": 1}, {"kind": 0}],
}
VALUES = [
    {"text": "a", "label": "yes", "tags": ["O", "B"], "meta": {"kind": "news"}},
    {"text": "b", "label": "no", "tags": [], "meta": {"kind": "mail"}},
    {"text": "c", "label": None, "tags": ["B"], "meta": {"kind": "news"}},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Hub data sets are cached on disk; not in the cache of whoever runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def write(file, columns) -> str:
    pa.parquet.write_table(pa.table(columns), file)
    return str(file)


@pytest.fixture
def folder(tmp_path):
    """A data set of one table, as its author pushes it: two splits, and names for classes."""
    (tmp_path / "set").mkdir()
    data = datasets.Dataset.from_dict(COLUMNS, features=FEATURES)
    data.to_parquet(tmp_path / "set" / "train.parquet")
    data.select([1]).to_parquet(tmp_path / "set" / "test.parquet")
    return tmp_path / "set"


def refused(name) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def test_a_parquet_file_has_json_values(tmp_path):
    file = write(
        tmp_path / "d.parquet",
        {
            "text": ["x", None],
            "refs": [["a", "b"], []],
            "n": [1, 2],
            "score": [0.5, -1.0],
            "good": [True, False],
            "day": [datetime.date(2024, 2, 29), None],
            "price": [Decimal("1.10"), None],
        },
    )
    day = {"day": "2024-02-29", "price": "1.10"}
    assert read_rows(file) == [
        Row({"text": "x", "refs": ["a", "b"], "n": 1, "score": 0.5, "good": True, **day}, f"{file} row 1"),
        Row(
            {"text": None, "refs": [], "n": 2, "score": -1.0, "good": False, "day": None, "price": None},
            f"{file} row 2",
        ),
    ]


def test_classes_become_their_names_wherever_they_stand(folder):
    rows = read_rows(folder / "train.parquet")
    assert [row.values for row in rows] == VALUES


def test_a_hub_data_set_reads_as_its_file_does(folder, monkeypatch):
    name = f"hub:{folder}:train"
    assert read_rows(name) == [Row(values, f"{name} row {n}") for n, values in enumerate(VALUES, 1)]
    assert [row.values for row in read_rows(f"hub:{folder}:test")] == VALUES[1:2]
    assert [row.values for row in read_rows(f"hub:{folder}:train[1:]+test")] == [*VALUES[1:], VALUES[1]]
    monkeypatch.chdir(folder.parent)
    assert read_rows("hub:./set:train")[2] == Row(VALUES[2], "hub:./set:train row 3")


def test_a_data_set_that_was_saved_to_disk(tmp_path, monkeypatch):
    data = datasets.Dataset.from_dict(COLUMNS, features=FEATURES)
    monkeypatch.chdir(tmp_path)
    data.shuffle(seed=1).sort("text").save_to_disk("disk")
    assert read_rows("hub:./disk:train")[2] == Row(VALUES[2], "hub:./disk:train row 3")
    assert [row.values for row in read_rows("hub:./disk:train[1:]")] == VALUES[1:]
    assert read_rows("disk")[2] == Row(VALUES[2], "disk row 3")
    assert data_digest("disk") == data_digest("hub:./disk:train") == data_digest(data)
    assert refused("hub:./disk:test") == "hub:./disk:test: there is no split 'test'; it has train."
    datasets.DatasetDict({"train": data, "dev": data.select([1])}).save_to_disk("both")
    assert [row.values for row in read_rows("hub:./both:dev")] == VALUES[1:2]
    assert [row.values for row in read_rows("hub:./both:train[:1]+dev")] == VALUES[:2]
    assert refused("both") == "both holds the splits train, dev; name one: hub:./both:train."
    assert refused(tmp_path).endswith(f"name a file in it, or a split of it: hub:{tmp_path}:train.")


def test_rows_in_memory(tmp_path):
    data = datasets.Dataset.from_dict(COLUMNS, features=FEATURES)
    assert read_rows(data) == [Row(values, f"row {number}") for number, values in enumerate(VALUES, 1)]
    assert [row.values for row in read_rows(VALUES)] == VALUES
    frame = pandas.DataFrame({"text": ["a", "b"], "n": [1, None], "when": pandas.to_datetime(["2024-02-29", None])})
    frame["whole"] = pandas.array([1, None], dtype="Int64")
    frame["kind"] = pandas.Categorical(["x", None])
    first, second = read_rows(frame)
    assert first == Row({"text": "a", "n": 1.0, "when": "2024-02-29T00:00:00", "whole": 1, "kind": "x"}, "row 1")
    assert (second.values["when"], second.values["whole"]) == (None, None)
    assert second.values["n"] != second.values["n"]
    assert data_digest(data) == data_digest(VALUES) != data_digest(VALUES[:2])
    assert refused([1]) == "row 1 is int, expected a dict such as {'text': ...}."
    assert "rows in memory has no examples" in refused([])


def test_other_formats_and_variants_of_a_folder(tmp_path):
    for config, text in (("en", "hello"), ("zh", "你好")):
        (tmp_path / "many" / config).mkdir(parents=True)
        (tmp_path / "many" / config / "train.jsonl").write_text(json.dumps({"text": text, "label": "x"}))
    configs = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("en", "zh")]
    (tmp_path / "many" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert read_rows(f"hub:{tmp_path}/many/zh:train")[0].values == {"text": "你好", "label": "x"}


def test_a_loading_script_is_never_run(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(f"hub:{tmp_path}/code:train")
    assert not (tmp_path / "ran").exists()


def test_pictures_beside_the_text_do_no_harm(tmp_path):
    image = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_dict({"text": ["a"], "image": [{"bytes": b"no picture", "path": None}]}, image)
    (tmp_path / "album").mkdir()
    data.to_parquet(tmp_path / "album" / "train.parquet")
    name = f"hub:{tmp_path}/album:train"
    assert read_rows(name)[0].values["text"] == "a"
    assert len(data_digest(name)) == 64


@pytest.mark.parametrize(
    ("name", "path", "config", "revision", "split"),
    [
        ("hub:o/n:train", "o/n", None, None, "train"),
        ("hub:o/n/c:validation[:10%]", "o/n", "c", None, "validation[:10%]"),
        ("hub:o/n@v1.0:train+test[5:9]", "o/n", None, "v1.0", "train+test[5:9]"),
        ("hub:o/n/c@abc:train", "o/n", "c", "abc", "train"),
    ],
)
def test_names_on_the_hub(name, path, config, revision, split):
    assert HubDataset.parse(name) == HubDataset(name, path, config, revision, split)


def test_a_folder_named_like_a_loader_is_still_a_folder(tmp_path, monkeypatch):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("text\nx\n")
    monkeypatch.chdir(tmp_path)
    assert read_rows("hub:csv:train")[0].values == {"text": "x"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:o/n", "'hub:o/n' does not name a data set and a split; write hub:OWNER/NAME:train."),
        ("hub::train", "'hub::train' does not name a data set and a split"),
        ("hub:o/n:train[1:", "'hub:o/n:train[1:' does not name a data set and a split"),
        ("hub:csv:train", "'hub:csv:train' names neither a folder nor a data set; write hub:OWNER/NAME:train."),
        ("hub:o//c:train", "'hub:o//c:train' names neither a folder nor a data set"),
        ("hub:a/b/c/d:train", "'hub:a/b/c/d:train' names neither a folder nor a data set"),
        ("hub:./no/where:train", "'hub:./no/where:train': there is no folder ./no/where; check the path."),
    ],
)
def test_names_that_are_none(name, message):
    assert refused(name).startswith(message)


def test_what_datasets_refuses_is_said_in_one_sentence(folder):
    assert 'cannot be loaded: Unknown split "dev"' in refused(f"hub:{folder}:dev")
    assert "cannot be loaded: BuilderConfig 'small' not found" in refused(f"hub:{folder}/small:train")


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "d.parquet").write_text("text")
    assert refused(tmp_path / "d.parquet").startswith(f"{tmp_path}/d.parquet is not a Parquet file that can be read: ")
    (tmp_path / "e.parquet").mkdir()
    assert refused(tmp_path / "e.parquet").endswith("e.parquet cannot be read: Is a directory; check the path.")
    assert refused(tmp_path / "f.parquet").endswith("cannot be read: No such file or directory; check the path.")
    write(tmp_path / "g.parquet", {"text": pa.array([], pa.string())})
    assert "g.parquet has no examples" in refused(tmp_path / "g.parquet")
    twice = pa.table([["x"], ["y"]], names=["text", "text"])
    pa.parquet.write_table(twice, tmp_path / "h.parquet")
    assert "h.parquet has the column 'text' twice" in refused(tmp_path / "h.parquet")


def test_a_class_without_a_name_is_named_with_its_row(tmp_path, folder):
    table = pa.parquet.read_table(folder / "train.parquet")
    wrong = table.set_column(1, table.schema.field("label"), pa.array([0, 7, 1], pa.int64()))
    pa.parquet.write_table(wrong.replace_schema_metadata(table.schema.metadata), tmp_path / "d.parquet")
    assert refused(tmp_path / "d.parquet").endswith("d.parquet row 2: 'label' is class 7 of 2; correct the row.")


def test_without_the_extra(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("foreword.text.table.find_spec", lambda name: None if name == "datasets" else real(name))
    file = write(tmp_path / "d.parquet", {"text": ["x"]})
    for name in (file, "hub:o/n:train"):
        assert refused(name) == f"{name} needs the packages datasets and pyarrow; pip install 'foreword[data]'."


def test_digests_follow_the_contents(tmp_path, folder):
    file = write(tmp_path / "d.parquet", {"text": ["x"]})
    assert data_digest(file) == data_digest(write(tmp_path / "e.parquet", {"text": ["x"]}))
    whole, part = data_digest(f"hub:{folder}:train"), data_digest(f"hub:{folder}:train[:2]")
    assert whole != part
    folder.rename(tmp_path / "elsewhere")
    assert data_digest(f"hub:{tmp_path}/elsewhere:train") == whole
