"""The `many` workload: loads, bounds and disturbances on a tiny model, and what the figures come to."""

from __future__ import annotations

import pytest

from foreword.bench import maker
from foreword.bench.many.side import drawn, start
from foreword.bench.many.workload import Many
from foreword.bench.record import Results
from foreword.bench.run import run
from foreword.bench.workload import Options

TEXT = " ".join(f"I want lamp {number} of order {number * 37}." for number in range(60))


@pytest.fixture(scope="module")
def side(roomy_folder, tmp_path_factory):
    sizes = {"prefixes": 12, "length": 8, "requests": 24, "concurrency": 2, "prompt_tokens": 10}
    given = {"model": roomy_folder, "dtype": "float32", "bank": str(tmp_path_factory.mktemp("bank")), "seed": 0}
    make = maker.start({**given, **sizes})
    bound = 4 * make["publish"](text=TEXT)
    prompts = make["texts"](text=TEXT, count=24, tokens=10)
    made = {"prompts": prompts, "prefix_bytes": bound, "output_tokens": 3, "running": 3, "during": 4}
    return start({**given, **sizes, **made}), bound


def test_traffic_loads_what_it_names_and_keeps_to_its_bound(side):
    side, bound = side
    uniform = side["traffic"](skew=0.0, turn=0)
    assert uniform["tokens"] == 24 * 3
    assert len(set(drawn(24, 12, 0.0, 0))) <= uniform["loads"] <= 24
    assert 0 < uniform["resident_bytes"] <= bound
    one = side["traffic"](skew=None, turn=0)
    assert one["loads"] <= 1
    assert one["tokens"] == uniform["tokens"]


def test_a_disturbance_is_measured_in_seconds_of_the_others(side):
    side, _ = side
    for _ in range(3):
        found = side["disturbance"]()
        assert set(found) == {"step", "warm", "cold"}
        assert found["step"] > 0


def test_zipf_names_the_first_tasks_more_often():
    counts = [drawn(3000, 100, 1.0, 0).count(index) for index in range(100)]
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.25)
    assert drawn(3000, 100, 0.0, 0).count(0) == pytest.approx(30, abs=20)
    assert drawn(9, 100, 1.0, 4) == drawn(9, 100, 1.0, 4) != drawn(9, 100, 1.0, 5)


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    workload = Many()
    outcome = run(
        workload, Options(tiny_data, roomy_folder, ("one_prefix",), steps=1, limit=10), Results(tmp_path), print
    )
    assert outcome.failed == []
    assert {record.key for record in outcome.records} == {"uniform", "zipf", "cold"}
    limits = {limit.name: limit for limit in outcome.summary.limits}
    assert limits["uniform/resident_share_of_bound"].met
    assert limits["cold/added_steps"].found is not None
    assert limits["zipf/one_prefix"].found is not None
    assert "| uniform |" in workload.tables(outcome.records)


@pytest.mark.parametrize(("times", "held", "steps", "met"), [(0.9, 100, 1.0, True), (0.89, 101, 1.01, False)])
def test_what_is_worse_is_not_met(make_record, times, held, steps, met):
    def spread(value):
        return {"median": value, "low": value, "high": value}

    found = {"runs": {}, "ratios": {"one_prefix": spread(times)}, "resident_bytes": held, "bound_bytes": 100}
    records = [make_record("many", key, found) for key in ("uniform", "zipf")]
    records.append(make_record("many", "cold", {"added_steps": spread(steps)}))
    assert [limit.met for limit in Many().summary(records).limits] == [met] * 5
    assert not any(limit.met for limit in Many().summary([]).limits)


def test_two_engines_keep_their_figures_apart(make_record, tiny_data):
    cells = {engine: Many().cells(Options(tiny_data, "model", (), engine=engine)) for engine in Many.engines}
    assert [cell.key for cell in cells["embedded"]] == ["uniform", "zipf", "cold"]
    assert [cell.key for cell in cells["vllm"]] == ["vllm/uniform", "vllm/zipf", "vllm/cold"]
    assert "engine" not in cells["embedded"][0].settings
    assert cells["vllm"][0].settings["engine"] == "vllm"
    spreads = {key: {"median": value, "low": value, "high": value} for key, value in (("cold", 0.5), ("vllm/cold", 2))}
    records = [
        make_record("many", key, {"added_steps": spread, "step_seconds": spread}) for key, spread in spreads.items()
    ]
    limits = {limit.name: limit.met for limit in Many().summary(records).limits if limit.found is not None}
    assert limits == {"cold/added_steps": True, "vllm/cold/added_steps": False}
    first, second = Many().tables(records).split("With `--engine vllm`:")
    assert "**0.50** decode steps" in first
    assert "**2.00** decode steps" in second
