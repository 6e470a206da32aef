"""The `search` workload: one search beside separate runs on a tiny model, and what the figures come to."""

from __future__ import annotations

import pytest

from benchmarks.search import workload as module
from benchmarks.search.workload import Search
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options


def test_the_workload_from_end_to_end(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """With four variants in place of sixteen; all of them are learned apart, too."""
    monkeypatch.setattr(module, "VARIED", {"length": [2], "init": ["auto"], "lr": [1e-3, 1e-2, 3e-2, 1e-1]})
    options = Options(tiny_data, tiny_folder, ("sequential",), steps=2, limit=8)
    result = run(Search(), options, Results(tmp_path), print)
    assert result.failed == []
    found = result.records[0].metrics
    assert len(found["sequential"]["seconds"]) == len(found["sequential"]["scores"]) == len(found["points"]) == 4
    assert found["sequential"]["times_one"] > 0
    assert found["sequential"]["times_faster"] == pytest.approx(4 / found["sequential"]["times_one"])
    assert found["sequential"]["difference"] < 1e-4
    assert found["search"]["score"] == pytest.approx(found["sequential"]["scores"][found["search"]["winner"]], abs=1e-5)
    assert found["search"]["savings"]["halving"]["dropped"] == 3
    table = Search().tables(result.records)
    assert "| one search of all |" in table
    assert "| a run of each |" in table
    assert "of the examples were not run" in table


def record(make_record, times: float, winner: int, difference: float | None):
    savings = {"halving": {"share_not_run": 0.5}, "batching": []}
    search = {"seconds": 50.0, "winner": 1, "score": 0.9, "savings": savings}
    apart = {"seconds": [10.0] * 2, "scores": [0.9, 0.8], "winner": winner, "times_one": times, "times_faster": 3.0}
    points = [{"lr": 0.1}, {"lr": 0.2}]
    found = {"points": points, "search": search, "sequential": {**apart, "difference": difference}}
    return make_record("search", "sst2", found)


@pytest.mark.parametrize(
    ("times", "winner", "difference", "met"),
    [
        (6.0, 1, 1e-4, [True, True, True]),
        (6.1, 0, 2e-4, [False, False, False]),
        (5.0, 1, None, [True, True, False]),
    ],
)
def test_what_is_worse_is_not_met(make_record, times, winner, difference, met):
    assert [goal.met for goal in Search().summary([record(make_record, times, winner, difference)]).goals] == met
    assert not any(goal.met for goal in Search().summary([]).goals)


def test_a_search_beside_nobody_meets_nothing(make_record):
    measured = record(make_record, 1.0, 1, 0.0)
    bare = make_record("search", "sst2", {key: measured.metrics[key] for key in ("points", "search")})
    assert not any(goal.met for goal in Search().summary([bare]).goals)
    assert "missing" in Search().tables([bare])
