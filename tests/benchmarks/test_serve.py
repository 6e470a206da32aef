"""The `serve` workload: what its figures come to."""

from __future__ import annotations

import pytest

from benchmarks.serve import Serve


@pytest.mark.parametrize(("ratio", "met"), [(0.98, True), (0.96, False)])
def test_a_server_that_costs_too_much_is_not_met(make_record, ratio, met):
    record = make_record("serve", "streaming", {"ratios": {"engine": {"median": ratio}}})
    (goal,) = Serve().summary([record]).goals
    assert goal.met is met
