"""The `ttft` workload beside vLLM."""

from __future__ import annotations

from benchmarks.markdown import MISSING
from benchmarks.ttft import Ttft
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options


def test_a_missing_vllm_is_named_and_stays_in_the_table(roomy_folder, tiny_data, tmp_path, no_vllm):
    options = Options(tiny_data, roomy_folder, ("uncached", "vllm"), steps=1, limit=300)
    result = run(Ttft(), options, Results(tmp_path), lambda line: None, only=["warm/1", "cold"])
    assert result.failed == []
    assert result.missing == [f"vllm {no_vllm}"]
    table = Ttft().tables(result.records)
    assert f"| warm/1 | `vllm` | {MISSING} | {MISSING} |" in table
    assert "| after it | foreword |" in table


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def test_vllm_is_compared_with_its_own_cache_after_a_restart(make_record):
    peers = {"uncached": spread(16.0), "vllm": spread(1.5)}
    found = {"runs": {"foreword": {"seconds": spread(0.1)}}, "ratios": peers}
    records = [make_record("ttft", f"vllm/{key}", found) for key in ("warm/1", "warm/8")]
    parts = {"over_warm": spread(2.0), "after": spread(0.05), "load": spread(0.02)}
    records.append(make_record("ttft", "vllm/cold", {**found, **parts}))
    limits = {goal.name: goal.met for goal in Ttft().summary(records).goals}
    assert limits == {
        "vllm/warm/1/uncached": True,
        "vllm/warm/8/uncached": True,
        "vllm/cold/over_warm": False,
        "vllm/cold/vllm": True,
    }
    assert Ttft().tables(records).startswith("With `--engine vllm`:\n\n| request |")
