"""``foreword bench conformance``: a user's own model beside plain Transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foreword.bench.architectures.architecture import KINDS, Architecture
from foreword.bench.conformance import Conformance, load_pair
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options
from tiny_models import byte_tokenizer, tiny_model

COLUMNS = ("train", "engine")


def measured(model: str, folder: Path):
    return run(Conformance(), Options(folder, model, ()), Results(folder), lambda line: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("qwen3")
    tiny_model("qwen3").model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_model_that_conforms(saved, tmp_path):
    result = measured(saved, tmp_path)
    assert result.failed == []
    (record,) = result.records
    assert (record.key, set(record.metrics)) == (saved, set(COLUMNS))
    assert record.metrics["train"]["gradients"] < 1e-4
    assert [goal.name for goal in result.summary.goals] == [f"{column}/largest_difference" for column in COLUMNS]
    assert all(goal.met for goal in result.summary.goals)


def test_other_weights_would_be_seen(saved, tiny_folder, tmp_path):
    pair = replace(load_pair(saved, 0), folder=Path(saved))
    for column in ("train", "engine"):
        pair.stock.get_input_embeddings().weight.data.mul_(1.5)
        assert Conformance.columns[column](pair)["difference"] > 1e-3


def test_an_encoder_is_compared_in_its_scores(tmp_path):
    tiny_model("bert").model.save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    (record,) = measured(str(tmp_path / "bert"), tmp_path).records
    assert all(record.metrics[column]["difference"] < 1e-4 for column in COLUMNS)


@pytest.mark.parametrize("model_type", ["lfm2", "t5", "mpnet"])
def test_a_model_without_a_past_is_compared_with_joined_texts(tmp_path, model_type):
    """One that keeps states, one with a front of its encoder, one that is run behind placeholder tokens."""
    found = (each for kind in KINDS for each in Architecture.all(kind) if each.model_type == model_type)
    next(found).build().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (record,) = measured(str(tmp_path / "model"), tmp_path).records
    assert all(record.metrics[column]["difference"] < 1e-4 for column in COLUMNS)
    assert record.metrics["train"]["gradients"] < 0.1
