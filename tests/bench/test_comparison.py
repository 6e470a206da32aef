"""Taking turns, and ratios within a turn."""

from __future__ import annotations

import pytest

from foreword.bench.workload import compared, interleaved, spread, times_better


def test_candidates_take_turns_and_the_first_turn_does_not_count():
    order = []

    def measure(name: str, turn: int) -> float:
        order.append((name, turn))
        return 10.0 * turn

    found = interleaved(["a", "b"], 2, measure)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [10.0, 20.0], "b": [10.0, 20.0]}


def test_a_disturbed_turn_cancels_in_the_ratio():
    ratio = times_better([1.0, 1.0, 9.0], [3.0, 3.0, 27.0])
    assert ratio == pytest.approx({"median": 3.0, "low": 3.0, "high": 3.0})


def test_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}


def test_a_record_keeps_everybodys_seconds_and_a_ratio_a_peer():
    found = compared({"foreword": [1.0, 2.0], "them": [0.5, 1.0]}, lambda line: None)
    assert found["runs"]["foreword"]["seconds"]["median"] == 1.5
    assert found["ratios"] == {"them": {"median": 0.5, "low": 0.5, "high": 0.5}}
