"""Both sides of the `train` workload learn the same function from the same values over the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foreword.bench.record import Results
from foreword.bench.run import run
from foreword.bench.train import foreword_step, peft_step
from foreword.bench.train.case import CASES
from foreword.bench.train.encoders import encoder
from foreword.bench.train.workload import BATCH, TEMPLATE, WORDS, Train, _data, _differences
from foreword.bench.workload import Options
from foreword.models.load import load_model
from foreword.training.recipe import Recipe
from foreword.training.run import Run

STEPS = 6


def options(model: str, data: Path, *peers: str) -> Options:
    return Options(data, model, peers, steps=2, limit=40)


@pytest.fixture
def settings(tiny_folder, tiny_data, tmp_path):
    data = _data(options(tiny_folder, tiny_data), 40, tmp_path)
    given = {"model": tiny_folder, "dtype": "float32", "batch_size": 4, "seed": 3, "template": TEMPLATE}
    return {**given, "data": str(data)}


def sides(settings, case, folder, lr=None):
    ours = foreword_step.start({**settings, "method": case.method, "length": 5, "lr": case.lr})
    ours["initial"](path=str(folder / "initial.safetensors"))
    config = {"peft_type": case.peft_type, "task_type": "CAUSAL_LM", "num_virtual_tokens": 5, **case.peft_options}
    given = {"batches": ours["batches"](count=STEPS), "initial": str(folder / "initial.safetensors"), "config": config}
    return ours, peft_step.start({**settings, **given, "lr": lr or case.lr})


def curve(side):
    return [side["step"](turn=turn)["loss"] for turn in range(STEPS)]


@pytest.mark.parametrize("method", CASES)
def test_both_sides_learn_the_same_curve(method, settings, tmp_path):
    ours, theirs = sides(settings, CASES[method], tmp_path)
    assert ours["trained_parameters"]() == theirs["trained_parameters"]()
    first, second = curve(ours), curve(theirs)
    assert first[0] != pytest.approx(first[-1], abs=1e-4)
    assert _differences({"foreword": first, "peft": second})["peft"] < 1e-4


@pytest.mark.parametrize("method", CASES)
def test_both_begin_at_the_initial_values_of_foreword(method, settings):
    lm = load_model(settings["model"], dtype="float32", device="cpu")
    files = {"data": settings["data"], "eval": settings["data"]}
    run = Run.from_recipe(lm, Recipe(**files, method=method, template=TEMPLATE, length=5, seed=3))
    torch.testing.assert_close(encoder(run).values(), run.initial_prompt().encoder.values(), rtol=1e-4, atol=1e-4)


def test_another_learning_rate_would_be_seen(settings, tmp_path):
    ours, theirs = sides(settings, CASES["prompt-tuning"], tmp_path, lr=0.1)
    assert _differences({"foreword": curve(ours), "peft": curve(theirs)})["peft"] > 1e-3


def test_rows_are_shuffled_and_every_row_is_seen_once(settings, tmp_path):
    case = CASES["p-tuning-v2"]
    ours = foreword_step.start({**settings, "method": case.method, "length": 5, "lr": case.lr})
    prompts = [tuple(prompt) for batch in ours["batches"](count=10) for prompt, _ in batch]
    file = Path(settings["data"]).read_text().splitlines()
    assert len(prompts) == len(file) == 40
    assert sorted(map(len, prompts)) != list(map(len, prompts))
    targets = {tuple(target) for batch in ours["batches"](count=10) for _, target in batch}
    assert len(targets) == len(WORDS)
    assert all(json.loads(line)["answer"] in WORDS.values() for line in file)


def test_the_workload_from_end_to_end(tiny_folder, tiny_data, tmp_path):
    workload, lines = Train(), []
    outcome = run(
        workload, options(tiny_folder, tiny_data, "peft"), Results(tmp_path), lines.append, only=["p-tuning-v2"]
    )
    record, curve = outcome.records
    assert (record.key, curve.key) == ("p-tuning-v2", "p-tuning-v2/curve")
    assert outcome.failed == []
    assert set(record.found["runs"]) == {"foreword", "peft"}
    assert curve.found["difference"]["peft"] < 1e-3
    assert record.settings["batch_size"] == BATCH
    assert {limit.name for limit in outcome.summary.limits} == {
        f"p-tuning-v2/peft/{name}" for name in ("samples_per_second", "peak_memory", "curve_difference")
    }
    assert outcome.summary.ratios["p-tuning-v2/peft/samples_per_second"] > 0
    assert "| p-tuning-v2 | 32 |" in workload.tables(outcome.records)
