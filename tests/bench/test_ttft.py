"""The `ttft` workload: real sides on a tiny model, and what the figures come to."""

from __future__ import annotations

import pytest

from foreword.bench import client, fixtures
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.ttft import Ttft
from foreword.bench.workload import Options


def options(model, data, *peers):
    return Options(data, model, peers, steps=1, limit=300)


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    wanted = options(roomy_folder, tiny_data, "uncached")
    result = run(Ttft(), wanted, Results(tmp_path), lambda line: None, only=["warm/8", "cold"])
    assert result.failed == []
    found = {record.key: record.metrics for record in result.records}
    assert set(found) == {"warm/8", "cold"}
    assert found["warm/8"]["published"]["tokens"] == 300
    assert set(found["cold"]["runs"]) == {"foreword", "uncached"}
    goals = {goal.name: goal.value for goal in result.summary.goals}
    assert set(goals) == {"warm/1/uncached", "warm/8/uncached", "cold/over_warm"}
    assert min(goals["warm/8/uncached"], goals["cold/over_warm"]) > 0


def test_a_published_policy_and_a_sent_one_give_the_same_answers(roomy_folder, tiny_data, tmp_path):
    given = {"model": roomy_folder, "dtype": "float32", "bank": str(tmp_path), "engine": "embedded"}
    make = fixtures.start(given)
    policy = make["texts"](text="No lamp. " * 60, count=1, tokens=200)[0]
    assert make["publish_text"](name="rules", text=policy)["tokens"] == 200
    questions = make["texts"](text="Where is my order? " * 9, count=4, tokens=20)
    assert len(set(questions)) == 4
    ask = client.start(given)["run"]
    published = ask(requests=[("rules", question) for question in questions], tokens=1, concurrency=4)
    sent = ask(requests=[(None, policy + question) for question in questions], tokens=1, concurrency=4)
    assert published["first_tokens"] == sent["first_tokens"]
    assert published["loads"] == 1
    assert published["first_seconds"] > published["load_seconds"] > 0


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


@pytest.mark.parametrize(("times", "over", "met"), [(15.0, 1.3, True), (14.9, 1.31, False)])
def test_what_is_too_slow_is_not_met(make_record, times, over, met):
    found = {"runs": {}, "ratios": {"uncached": spread(times)}}
    records = [
        make_record("ttft", "warm/1", found),
        make_record("ttft", "warm/8", found),
        make_record("ttft", "cold", {**found, "over_warm": spread(over)}),
    ]
    assert [goal.met for goal in Ttft().summary(records).goals] == [met] * 3
    assert [goal.met for goal in Ttft().summary([]).goals] == [False] * 3
