"""The `step` workload: what is stepped, what the products are, and what the figures come to."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig

from foreword.bench.record import Results
from foreword.bench.run import run
from foreword.bench.step import side
from foreword.bench.step.products import Products, Shapes
from foreword.bench.step.workload import Step
from foreword.bench.workload import Options
from foreword.errors import BenchError
from tiny_models import tiny_config, tiny_model

TEXT = " ".join(f"I want lamp {number} of order {number * 37}." for number in range(60))


def test_the_products_have_the_weights_of_the_model():
    products = Products(Shapes.of(tiny_config("llama")), torch.float32)
    layers = tiny_model("llama").model.model.layers
    weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2) + tiny_config("llama").vocab_size * 48
    assert products.nbytes == 4 * weights
    assert products.seconds(3, 1) > 0


def test_other_models_are_refused():
    with pytest.raises(BenchError, match="BertConfig is not of Llama's shape"):
        Shapes.of(BertConfig())


def test_only_decode_steps_of_the_whole_batch_are_timed(roomy_folder):
    given = {"model": roomy_folder, "dtype": "float32", "text": TEXT, "batch": 5, "prompt_tokens": 300}
    answers = side.start(given)
    answers["begin"](tokens=3)
    for _ in range(3):
        assert answers["step"]() > 0
    with pytest.raises(BenchError, match="expected 5"):
        until_it_fails(answers["step"])


def until_it_fails(step):
    for _ in range(20):
        step()


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path):
    workload = Step()
    wanted = Options(tiny_data, roomy_folder, ("transformers", "llamacpp"), steps=2, limit=200)
    outcome = run(workload, wanted, Results(tmp_path), lambda line: None, only=["b4", "prefill"])
    assert outcome.failed == []
    assert [sentence.split()[0] for sentence in outcome.missing] == ["llamacpp"]
    assert set(outcome.summary.ratios) == {"b4/transformers", "prefill/transformers"}
    found = {record.key: record.found for record in outcome.records}
    assert found["b4"]["over_products"]["median"] > 0
    assert found["b4"]["floor"]["median"] > 0
    limits = {limit.name: limit.found for limit in outcome.summary.limits}
    assert limits["prefill/over_products"] is not None
    assert limits["b16/over_products"] is None
    rows = workload.tables(outcome.records).splitlines()
    assert rows[2].startswith("| b4 | ")
    assert rows[2].endswith("| missing |")


@pytest.mark.parametrize(("share", "met"), [(1.0, True), (1.01, False)])
def test_what_is_too_slow_is_not_met(make_record, share, met):
    goals = {"b1": 2.0, "b16": 1.5, "b64": 1.5, "prefill": 1.5}
    records = [
        make_record("step", key, {"ratios": {}, "over_products": {"median": goal * share}})
        for key, goal in goals.items()
    ]
    limits = Step().summary(records).limits
    assert [limit.met for limit in limits] == [met] * 4
    assert not any(limit.met for limit in Step().summary([]).limits)
