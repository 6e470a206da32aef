"""The `serve` workload: the same answers over HTTP and without, and what the figures come to."""

from __future__ import annotations

from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.serve import Serve
from foreword.bench.workload import Options


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    wanted = Options(tiny_data, roomy_folder, ("engine",), steps=1, limit=4)
    result = run(Serve(), wanted, Results(tmp_path), lambda line: None)
    assert result.failed == []
    assert set(result.summary.ratios) == {"streaming/engine"}
