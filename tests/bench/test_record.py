"""Records are kept whole, found again, and never mistaken for something else."""

from __future__ import annotations

import pytest

from foreword.bench.record import Record, Results
from foreword.errors import BenchError

RECORD = Record("quality", "sst2/full/lr=1e-05", {"steps": 3}, {"commit": "abc"}, {"test": 0.5})


def test_a_record_is_found_again(tmp_path):
    results = Results(tmp_path / "new")
    assert results.find("quality", RECORD.key) is None
    results.keep(RECORD)
    assert results.path("quality", RECORD.key).name == "sst2-full-lr=1e-05.json"
    assert results.find("quality", RECORD.key) == RECORD
    assert results.all("quality") == [RECORD]
    assert results.all("train") == []
    assert [path.name for path in (tmp_path / "new" / "quality").iterdir()] == ["sst2-full-lr=1e-05.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"workload": "quality"}', '{"a": 1}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    results = Results(tmp_path)
    results.keep(RECORD)
    results.path("quality", RECORD.key).write_text(text)
    with pytest.raises(BenchError, match="is no benchmark record"):
        results.find("quality", RECORD.key)


def test_figures_that_are_no_numbers_are_not_kept():
    with pytest.raises(BenchError, match="a has a metric that is not a finite number"):
        Record("quality", "a", {}, {}, {"test": float("nan")})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "quality").write_text("a file in its place")
    with pytest.raises(BenchError, match="cannot be written"):
        Results(tmp_path).keep(RECORD)
