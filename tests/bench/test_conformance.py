"""``foreword bench conformance``: a user's own model beside plain Transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foreword.bench.conformance import Conformance, load_pair
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options
from tiny_encoder_decoders import tiny_encoder_decoder
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


def test_an_encoder_is_compared_where_it_can_be(tmp_path):
    tiny_model("bert").model.save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    (record,) = measured(str(tmp_path / "bert"), tmp_path).records
    assert record.metrics["train"]["difference"] < 1e-4
    assert "is an encoder" in record.metrics["engine"]["refused"]


def test_a_model_without_logits_behind_a_prefix_is_refused(tmp_path):
    tiny_encoder_decoder("t5").model.save_pretrained(tmp_path / "t5")
    byte_tokenizer().save_pretrained(tmp_path / "t5")
    (record,) = measured(str(tmp_path / "t5"), tmp_path).records
    assert all("no logits behind a prefix" in record.metrics[column]["refused"] for column in COLUMNS)
