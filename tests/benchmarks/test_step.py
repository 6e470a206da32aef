"""The `step` workload beside what bounds it: what the products are, and what the figures come to."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig

from benchmarks.step import Step
from benchmarks.step_bounds import Products, Shapes
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options
from foreword.errors import BenchError
from tiny_models import tiny_config, tiny_model


def test_the_products_have_the_weights_of_the_model():
    products = Products(Shapes.of(tiny_config("llama")), torch.float32)
    layers = tiny_model("llama").model.model.layers
    weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2) + tiny_config("llama").vocab_size * 48
    assert products.nbytes == 4 * weights
    assert products.seconds(3, 1) > 0


def test_other_models_are_refused():
    with pytest.raises(BenchError, match="BertConfig is not of Llama's shape"):
        Shapes.of(BertConfig())


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    wanted = Options(tiny_data, roomy_folder, ("transformers", "llamacpp"), steps=2, limit=200)
    result = run(Step(), wanted, Results(tmp_path), lambda line: None, only=["b4", "prefill"])
    assert result.failed == []
    assert [sentence.split()[0] for sentence in result.missing] == ["llamacpp"]
    assert set(result.summary.ratios) == {"b4/transformers", "prefill/transformers"}
    found = {record.key: record.metrics for record in result.records}
    assert found["b4"]["over_products"]["median"] > 0
    assert found["b4"]["floor"]["median"] > 0
    values = {goal.name: goal.value for goal in result.summary.goals}
    assert values["prefill/over_products"] is not None
    assert values["b16/over_products"] is None
    rows = Step().tables(result.records).splitlines()
    assert rows[2].startswith("| b4 | ")
    assert rows[2].endswith("| missing |")


@pytest.mark.parametrize(("share", "met"), [(1.0, True), (1.01, False)])
def test_what_is_too_slow_is_not_met(make_record, share, met):
    goals = {"b1": 2.0, "b16": 1.5, "b64": 1.5, "prefill": 1.5}
    records = [
        make_record("step", key, {"ratios": {}, "over_products": {"median": goal * share}})
        for key, goal in goals.items()
    ]
    goals = Step().summary(records).goals
    assert [goal.met for goal in goals] == [met] * 4
    assert not any(goal.met for goal in Step().summary([]).goals)
