"""Both sides of the `many-train` workload learn the same prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.many_train import participant
from benchmarks.many_train.workload import ManyTrain, write_users
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options


def options(model: str, data: Path, *peers: str) -> Options:
    return Options(data, model, peers, steps=3, limit=3)


@pytest.fixture
def settings(tiny_folder, tiny_data, tmp_path):
    shared = ManyTrain().cases(options(tiny_folder, tiny_data))[0].settings
    users = write_users(tiny_data, shared, tmp_path)
    return {**shared, "users": str(users), "dtype": "float32", "max_steps": 6, "length": 4}


def learned(settings, folder, together, **changes):
    made = participant.start({**settings, "together": together, **changes})
    for _ in range(6):
        made["step"]()
    file = folder / f"{together}.safetensors"
    made["save"](path=str(file))
    return load_file(file)


def apart(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def test_together_learns_what_one_after_another_learns(settings, tmp_path):
    one, other = learned(settings, tmp_path, True), learned(settings, tmp_path, False)
    assert len(one) == 3 * 3 * 2
    assert apart(one, other) < 1e-4


def test_another_order_of_rows_would_be_seen(settings, tmp_path):
    assert apart(learned(settings, tmp_path, True), learned(settings, tmp_path, False, seed=1)) > 1e-3


def test_the_workload_from_end_to_end(tiny_folder, tiny_data, tmp_path):
    workload, lines = ManyTrain(), []
    result = run(workload, options(tiny_folder, tiny_data, "sequential"), Results(tmp_path), lines.append)
    speed, same = result.records
    assert result.failed == []
    assert set(speed.metrics["runs"]) == {"foreword", "sequential"}
    assert same.metrics["difference"] < 1e-4
    assert {goal.name: goal.target for goal in result.summary.goals} == {
        "speed/sequential/examples_per_second": 2.5,
        "same/sequential/difference": 1e-4,
    }
    assert result.summary.ratios["speed/sequential/examples_per_second"] > 0
    assert "| 3 | 2 |" in workload.tables(result.records)
