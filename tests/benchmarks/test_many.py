"""The `many` workload with disturbances, and what its figures come to."""

from __future__ import annotations

import pytest

from benchmarks.many import Many, start
from foreword.bench import fixtures
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options

TEXT = " ".join(f"I want lamp {number} of order {number * 37}." for number in range(60))


@pytest.fixture(scope="module")
def given(roomy_folder, tmp_path_factory):
    sizes = {"prefixes": 12, "length": 8, "seed": 0}
    given = {"model": roomy_folder, "dtype": "float32", "bank": str(tmp_path_factory.mktemp("bank")), **sizes}
    make = fixtures.start(given)
    bound = 4 * make["publish_learned"]()
    prompts = make["texts"](text=TEXT, count=24, tokens=10)
    return {**given, "engine": "embedded", "prompts": prompts, "prefix_bytes": bound, "running": 3, "during": 4}


def test_a_disturbance_is_measured_in_seconds_of_the_others(given):
    disturb = start(given)["disturb"]
    for _ in range(3):
        found = disturb()
        assert set(found) == {"step", "warm", "cold"}
        assert found["step"] > 0


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    options = Options(tiny_data, roomy_folder, ("one_prefix",), steps=1, limit=10)
    result = run(Many(), options, Results(tmp_path), lambda line: None, only=["uniform", "cold"])
    assert result.failed == []
    assert {record.key for record in result.records} == {"uniform", "cold"}
    goals = {goal.name: goal for goal in result.summary.goals}
    assert goals["uniform/resident_share_of_bound"].met
    assert goals["cold/added_steps"].value is not None
    assert goals["uniform/one_prefix"].value is not None
    assert "| uniform |" in Many().tables(result.records)


@pytest.mark.parametrize(("times", "held", "steps", "met"), [(0.9, 100, 1.0, True), (0.89, 101, 1.01, False)])
def test_what_is_worse_is_not_met(make_record, times, held, steps, met):
    def spread(value):
        return {"median": value, "low": value, "high": value}

    found = {"runs": {}, "ratios": {"one_prefix": spread(times)}, "resident_bytes": held, "bound_bytes": 100}
    records = [make_record("many", key, found) for key in ("uniform", "zipf")]
    records.append(make_record("many", "cold", {"added_steps": spread(steps)}))
    assert [goal.met for goal in Many().summary(records).goals] == [met] * 5
    assert not any(goal.met for goal in Many().summary([]).goals)


def test_two_engines_keep_their_figures_apart(make_record):
    spreads = {key: {"median": value, "low": value, "high": value} for key, value in (("cold", 0.5), ("vllm/cold", 2))}
    records = [
        make_record("many", key, {"added_steps": spread, "step_seconds": spread}) for key, spread in spreads.items()
    ]
    goals = {goal.name: goal.met for goal in Many().summary(records).goals if goal.value is not None}
    assert goals == {"cold/added_steps": True, "vllm/cold/added_steps": False}
    first, second = Many().tables(records).split("With `--engine vllm`:")
    assert "**0.50** decode steps" in first
    assert "**2.00** decode steps" in second
