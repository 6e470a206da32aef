"""The `serve` workload: the same answers over HTTP and without, and what the figures come to."""

from __future__ import annotations

import pytest

from foreword.bench.record import Results
from foreword.bench.run import run
from foreword.bench.serve.workload import Serve
from foreword.bench.workload import Options


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    workload = Serve()
    wanted = Options(tiny_data, roomy_folder, ("engine",), steps=1, limit=4)
    outcome = run(workload, wanted, Results(tmp_path), lambda line: None)
    assert outcome.failed == []
    assert set(outcome.summary.ratios) == {"streaming/engine"}
    assert workload.tables(outcome.records).splitlines()[2].startswith("| streaming | ")


@pytest.mark.parametrize(("ratio", "met"), [(0.98, True), (0.96, False)])
def test_a_server_that_costs_too_much_is_not_met(make_record, ratio, met):
    record = make_record("serve", "streaming", {"ratios": {"engine": {"median": ratio}}})
    (limit,) = Serve().summary([record]).limits
    assert limit.met is met
