"""The `step` workload: what is stepped, what the products are, and what the figures come to."""

from __future__ import annotations

import pytest

from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.step import Step, start
from foreword.bench.workload import Options
from foreword.errors import BenchError

TEXT = " ".join(f"I want lamp {number} of order {number * 37}." for number in range(60))


def test_only_decode_steps_of_the_whole_batch_are_timed(roomy_folder):
    given = {"model": roomy_folder, "dtype": "float32", "text": TEXT, "batch": 5, "prompt_tokens": 300}
    answers = start({**given, "engine": "embedded", "rounds": 1, "steps": 1})
    answers["begin"]()
    for _ in range(3):
        assert answers["step"]() > 0
    with pytest.raises(BenchError, match="expected 5"):
        until_it_fails(answers["step"])


def until_it_fails(step):
    for _ in range(20):
        step()


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    wanted = Options(tiny_data, roomy_folder, (), steps=2, limit=200)
    result = run(Step(), wanted, Results(tmp_path), lambda line: None, only=["b4", "prefill"])
    assert result.failed == []
    assert all(record.metrics["runs"]["foreword"]["seconds"]["median"] > 0 for record in result.records)
