"""Both sides of the `train` workload learn the same function from the same values over the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.rows import VERBALIZER
from benchmarks.train import foreword, peft_train
from benchmarks.train.encoders import encoder
from benchmarks.train.methods import METHODS
from benchmarks.train.workload import BATCH, TEMPLATE, Train, differences, write_answers
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options
from foreword.models.load import load_model
from foreword.training.recipe import Recipe
from foreword.training.run import Run

STEPS = 6


def options(model: str, data: Path, *peers: str) -> Options:
    return Options(data, model, peers, steps=2, limit=40)


@pytest.fixture
def settings(tiny_folder, tiny_data, tmp_path):
    data = write_answers(tiny_data, 40, tmp_path)
    given = {"model": tiny_folder, "dtype": "float32", "batch_size": 4, "seed": 3, "template": TEMPLATE}
    return {**given, "data": data}


def sides(settings, case, folder, lr=None):
    ours = foreword.start({**settings, "method": case.name, "length": 5, "lr": case.lr})
    ours["initial"](path=str(folder / "initial.safetensors"))
    config = {"peft_type": case.peft_type, "task_type": "CAUSAL_LM", "num_virtual_tokens": 5, **case.peft_options}
    given = {"batches": ours["batches"](count=STEPS), "initial": str(folder / "initial.safetensors"), "config": config}
    return ours, peft_train.start({**settings, **given, "lr": lr or case.lr})


def curve(side):
    return [side["step"](turn=turn)["loss"] for turn in range(STEPS)]


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_learn_the_same_curve(method, settings, tmp_path):
    ours, theirs = sides(settings, METHODS[method], tmp_path)
    assert ours["trained_parameters"]() == theirs["trained_parameters"]()
    first, second = curve(ours), curve(theirs)
    assert first[0] != pytest.approx(first[-1], abs=1e-4)
    assert differences({"foreword": first, "peft": second})["peft"] < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_both_begin_at_the_initial_values_of_foreword(method, settings):
    lm = load_model(settings["model"], dtype="float32", device="cpu")
    files = {"data": settings["data"], "eval": settings["data"]}
    run = Run.from_recipe(lm, Recipe(**files, method=method, template=TEMPLATE, length=5, seed=3))
    torch.testing.assert_close(encoder(run).values(), run.initial_prompt().encoder.values(), rtol=1e-4, atol=1e-4)


def test_another_learning_rate_would_be_seen(settings, tmp_path):
    ours, theirs = sides(settings, METHODS["prompt-tuning"], tmp_path, lr=0.1)
    assert differences({"foreword": curve(ours), "peft": curve(theirs)})["peft"] > 1e-3


def test_rows_are_shuffled_and_every_row_is_seen_once(settings, tmp_path):
    case = METHODS["p-tuning-v2"]
    ours = foreword.start({**settings, "method": case.name, "length": 5, "lr": case.lr})
    prompts = [tuple(prompt) for batch in ours["batches"](count=10) for prompt, _ in batch]
    file = Path(settings["data"]).read_text().splitlines()
    assert len(prompts) == len(file) == 40
    assert sorted(map(len, prompts)) != list(map(len, prompts))
    targets = {tuple(target) for batch in ours["batches"](count=10) for _, target in batch}
    assert len(targets) == len(VERBALIZER)
    assert all(json.loads(line)["answer"] in VERBALIZER.values() for line in file)


def test_the_workload_from_end_to_end(tiny_folder, tiny_data, tmp_path):
    workload, lines = Train(), []
    result = run(
        workload, options(tiny_folder, tiny_data, "peft"), Results(tmp_path), lines.append, only=["p-tuning-v2"]
    )
    record, curve = result.records
    assert (record.key, curve.key) == ("p-tuning-v2", "p-tuning-v2/curve")
    assert result.failed == []
    assert set(record.metrics["runs"]) == {"foreword", "peft"}
    assert curve.metrics["difference"]["peft"] < 1e-3
    assert record.settings["batch_size"] == BATCH
    assert {goal.name for goal in result.summary.goals if goal.value is not None} == {
        f"p-tuning-v2/peft/{name}" for name in ("samples_per_second", "peak_memory", "curve_difference")
    }
    assert result.summary.ratios["p-tuning-v2/peft/samples_per_second"] > 0
    assert "| p-tuning-v2 | 32 |" in workload.tables(result.records)
