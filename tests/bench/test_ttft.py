"""The `ttft` workload: real sides on a tiny model, and what the figures come to."""

from __future__ import annotations

import pytest

from foreword.bench import maker
from foreword.bench.markdown import MISSING
from foreword.bench.record import Results
from foreword.bench.run import run
from foreword.bench.ttft import side
from foreword.bench.ttft.workload import Ttft
from foreword.bench.workload import Options


def options(model, data, *peers):
    return Options(data, model, peers, steps=2, limit=300)


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path, no_vllm):
    workload, lines = Ttft(), []
    outcome = run(workload, options(roomy_folder, tiny_data, "uncached", "vllm"), Results(tmp_path), lines.append)
    assert outcome.failed == []
    assert outcome.missing == [f"vllm {no_vllm}"]
    found = {record.key: record.found for record in outcome.records}
    assert set(found) == {"warm/1", "warm/8", "cold"}
    assert found["warm/8"]["published"]["tokens"] == 300
    assert set(found["cold"]["runs"]) == {"foreword", "uncached"}
    assert [limit.name for limit in outcome.summary.limits] == ["warm/1/uncached", "warm/8/uncached", "cold/over_warm"]
    assert all(limit.found is not None and limit.found > 0 for limit in outcome.summary.limits)
    table = workload.tables(outcome.records)
    assert f"| warm/1 | `vllm` | {MISSING} | {MISSING} |" in table
    assert "| after it | foreword |" in table


def test_both_sides_answer_the_same_question(roomy_folder, tiny_data, tmp_path):
    given = {"model": roomy_folder, "dtype": "float32", "bank": str(tmp_path), "task": "rules"}
    make = maker.start(given)
    policy = make["cut"](text="No lamp. " * 60, tokens=200)
    assert make["publish_text"](name="rules", text=policy)["tokens"] == 200
    questions = make["texts"](text="Where is my order? " * 9, count=4, tokens=20)
    assert len(set(questions)) == 4
    answers = side.start({**given, "policy": policy})
    published, sent = (answers["ask"](questions=questions, published=how) for how in (True, False))
    assert published["tokens"] == sent["tokens"]
    assert published["seconds"] > 0


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
    assert [limit.met for limit in Ttft().summary(records).limits] == [met] * 3
    assert [limit.met for limit in Ttft().summary([]).limits] == [False] * 3


def test_vllm_is_compared_with_its_own_cache_after_a_restart(make_record):
    peers = {"uncached": spread(16.0), "vllm": spread(1.5)}
    found = {"runs": {"foreword": {"seconds": spread(0.1)}}, "ratios": peers}
    records = [make_record("ttft", f"vllm/{key}", found) for key in ("warm/1", "warm/8")]
    parts = {"over_warm": spread(2.0), "after": spread(0.05), "load": spread(0.02)}
    records.append(make_record("ttft", "vllm/cold", {**found, **parts}))
    limits = {limit.name: limit.met for limit in Ttft().summary(records).limits}
    assert limits == {
        "vllm/warm/1/uncached": True,
        "vllm/warm/8/uncached": True,
        "vllm/cold/over_warm": False,
        "vllm/cold/vllm": True,
    }
    assert Ttft().tables(records).startswith("With `--engine vllm`:\n\n| request |")
