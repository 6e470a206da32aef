"""The conformance matrix: what is found in models that conform, that do not, and that are refused."""

from __future__ import annotations

import pytest

from foreword.bench.conformance import checks
from foreword.bench.conformance.families import FAMILIES
from foreword.bench.conformance.subject import Subject
from foreword.bench.conformance.workload import GOAL, Conformance
from foreword.bench.record import Results
from foreword.bench.run import run
from foreword.bench.workload import Options

COLUMNS = ("train", "checkpointing", "engine", "peft")


def options(tmp_path, *peers):
    return Options(tmp_path, "any", peers)


def measured(tmp_path, *families, peers=("peft",)):
    return run(Conformance(), options(tmp_path, *peers), Results(tmp_path), lambda line: None, only=families)


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return Subject.of(FAMILIES["opt"], tmp_path_factory.mktemp("opt"), 0)


def test_families_that_conform(tmp_path):
    outcome = measured(tmp_path, "gemma3", "bert", "bart")
    assert outcome.failed == []
    found = {record.key: record.found for record in outcome.records}
    for key in ("gemma3", "bert"):
        assert all(found[key][column]["difference"] < GOAL for column in COLUMNS), found[key]
    assert found["gemma3"]["engine"]["same_tokens"]
    assert found["gemma3"]["train"]["gradients"] < GOAL
    assert found["bart"]["engine"]["refused"].startswith("bart is an encoder-decoder")
    assert found["bart"]["peft"]["difference"] < GOAL
    assert all(limit.met for limit in outcome.summary.limits)
    table = Conformance().tables(outcome.records)
    assert "| refused: is an encoder-decoder (BartForConditionalGeneration) |" in table


@pytest.mark.parametrize("key", ["bloom", "nemotron", "falcon_h1"])
def test_families_that_are_refused_say_why(tmp_path, key):
    (record,) = measured(tmp_path, key).records
    assert len({record.found[column]["refused"] for column in COLUMNS}) == 1
    row = Conformance().tables([record]).splitlines()[-1]
    assert row.endswith(" | refused | refused | refused |")
    assert "refused: " in row


def test_without_peft_its_column_is_missing(tmp_path):
    (record,) = measured(tmp_path, "qwen3", peers=()).records
    assert "missing" in record.found["peft"]
    assert Conformance().tables([record]).splitlines()[-1].endswith("| missing |")


@pytest.mark.parametrize("column", COLUMNS)
def test_other_weights_would_be_seen(opt, tmp_path, monkeypatch, column):
    """Every check fails on a model that is not the one beside it; checkpointing, on one that drops out."""
    other = Subject.of(FAMILIES["opt"], tmp_path / "other", 1)
    broken = Subject(opt.family, other.folder, opt.lm, opt.seed)
    if column == "checkpointing":
        monkeypatch.setattr("foreword.training.checkpointing._is_rate", lambda name, value: False)
    assert checks.CHECKS[column](broken)["difference"] > 100 * GOAL
    assert set(checks.CHECKS) == set(COLUMNS)


def test_a_larger_difference_is_not_met(make_record):
    found = {column: {"difference": 1e-6} for column in COLUMNS}
    records = [make_record("conformance", "llama", found)]
    assert [limit.met for limit in Conformance().summary(records).limits] == [True] * 4
    records.append(make_record("conformance", "opt", {**found, "engine": {"difference": 2e-4}}))
    assert [limit.met for limit in Conformance().summary(records).limits] == [True, True, False, True]
    assert not any(limit.met for limit in Conformance().summary([]).limits)
