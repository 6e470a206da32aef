"""The `many` workload: loads, bounds and disturbances on a tiny model, and what the figures come to."""

from __future__ import annotations

import pytest

from foreword.bench import client, fixtures
from foreword.bench.many import Many, drawn
from foreword.bench.prompts import learned_name
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
    return {**given, "engine": "embedded", "prompts": prompts, "prefix_bytes": bound}


def test_traffic_loads_what_it_names_and_keeps_to_its_bound(given):
    ask = client.start(given)["run"]

    def traffic(tasks):
        requests = [(learned_name(task), text) for task, text in zip(tasks, given["prompts"], strict=True)]
        return ask(requests=requests, tokens=3, concurrency=2)

    tasks = drawn(24, 12, 0.0, 0)
    uniform = traffic(tasks)
    assert uniform["tokens"] == 24 * 3
    assert len(set(tasks)) <= uniform["loads"] <= 24
    assert 0 < uniform["resident_bytes"] <= given["prefix_bytes"]
    one = traffic([0] * 24)
    assert one["loads"] <= 1
    assert one["tokens"] == uniform["tokens"]


def test_zipf_names_the_first_tasks_more_often():
    counts = [drawn(3000, 100, 1.0, 0).count(index) for index in range(100)]
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.25)
    assert drawn(3000, 100, 0.0, 0).count(0) == pytest.approx(30, abs=20)
    assert drawn(9, 100, 1.0, 4) == drawn(9, 100, 1.0, 4) != drawn(9, 100, 1.0, 5)


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    options = Options(tiny_data, roomy_folder, ("one_prefix",), steps=1, limit=10)
    result = run(Many(), options, Results(tmp_path), lambda line: None, only=["zipf"])
    assert result.failed == []
    assert {record.key for record in result.records} == {"zipf"}
    assert set(result.summary.ratios) == {"zipf/one_prefix"}
    assert all(record.metrics["resident_bytes"] <= record.metrics["bound_bytes"] for record in result.records)


def test_two_engines_keep_their_figures_apart(tiny_data):
    cases = {engine: Many().cases(Options(tiny_data, "model", (), engine=engine)) for engine in Many.engines}
    assert [case.key for case in cases["embedded"]] == ["uniform", "zipf"]
    assert [case.key for case in cases["vllm"]] == ["vllm/uniform", "vllm/zipf"]
    assert "engine" not in cases["embedded"][0].settings
    assert cases["vllm"][0].settings["engine"] == "vllm"
