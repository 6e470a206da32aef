"""The conformance matrix: what is found in models that conform, that do not, and that are refused."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from benchmarks.conformance import columns
from benchmarks.conformance.engine_steps import ended
from benchmarks.conformance.families import FAMILIES
from benchmarks.conformance.pairs import load_pair
from benchmarks.conformance.workload import Conformance
from foreword.bench.record import Record, Results
from foreword.bench.runner import run
from foreword.bench.worker import Worker
from foreword.bench.workload import Options
from foreword.errors import BenchError, EngineError

GOAL = 1e-4
COLUMNS = ("train", "checkpointing", "engine", "peft")


def options(tmp_path, *peers):
    return Options(tmp_path, "any", peers)


def measured(tmp_path, *families, peers=("peft",)):
    return run(Conformance(), options(tmp_path, *peers), Results(tmp_path), lambda line: None, only=families)


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return load_pair(FAMILIES["opt"], tmp_path_factory.mktemp("opt"), 0)


def test_families_that_conform(tmp_path):
    result = measured(tmp_path, "gemma3", "bert", "bart")
    assert result.failed == []
    found = {record.key: record.metrics for record in result.records}
    for key in ("gemma3", "bert"):
        assert all(found[key][column]["difference"] < GOAL for column in COLUMNS), found[key]
    assert found["gemma3"]["engine"]["same_tokens"]
    assert found["gemma3"]["train"]["gradients"] < GOAL
    assert found["bart"]["engine"]["difference"] < GOAL
    assert found["bart"]["peft"]["difference"] < GOAL
    assert all(goal.met for goal in result.summary.goals[: len(COLUMNS)])


@pytest.mark.parametrize("key", ["bloom", "nemotron", "falcon_h1"])
def test_families_that_are_run_through_a_cache_conform(tmp_path, key):
    (record,) = measured(tmp_path, key).records
    assert all(record.metrics[column]["difference"] < GOAL for column in ("train", "engine"))


def test_a_family_that_is_refused_says_why_once():
    found = {column: {"refused": "FNet has no attention; take another."} for column in Conformance.columns}
    row = Conformance().tables([Record("conformance", "fnet", {"title": "FNet"}, {}, found)]).splitlines()[-1]
    assert row == "| FNet | refused: has no attention | refused | refused | refused | refused | refused |"


def test_without_peft_or_vllm_their_columns_are_missing(tmp_path):
    (record,) = measured(tmp_path, "qwen3", peers=()).records
    assert "missing" in record.metrics["peft"]
    assert "missing" in record.metrics["vllm"]
    assert "missing" in record.metrics["llamacpp"]
    assert Conformance().tables([record]).splitlines()[-1].endswith("| missing | missing | missing |")


@pytest.mark.parametrize("column", COLUMNS)
def test_other_weights_would_be_seen(opt, tmp_path, monkeypatch, column):
    """Every check fails on a model that is not the one beside it; checkpointing, on one that drops out."""
    other = load_pair(FAMILIES["opt"], tmp_path / "other", 1)
    broken = replace(opt, folder=other.folder)
    if column == "checkpointing":
        monkeypatch.setattr("foreword.training.loop.gradient_checkpointing._is_dropout", lambda name, value: False)
    assert Conformance.columns[column](broken)["difference"] > 100 * GOAL
    assert set(Conformance.columns) == {*COLUMNS, "vllm", "llamacpp"}


@pytest.fixture
def in_its_place(monkeypatch):
    """Puts a participant of the tests in vLLM's place."""
    monkeypatch.setenv(columns.VLLM_PEER.variable, sys.executable)
    return lambda name: monkeypatch.setattr(columns, "START_VLLM", f"vllm_doubles:{name}")


def test_on_vllm_a_lost_prefix_is_a_number(opt, in_its_place):
    in_its_place("embedded")
    found = columns.on_vllm(opt)
    assert found["difference"] < GOAL
    assert found["same_tokens"]
    in_its_place("forgetful")
    found = columns.on_vllm(opt)
    assert found["difference"] > 1000 * GOAL
    assert not found["same_tokens"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("dying", "failed: it ended without an answer, status 7"), ("refusing", "refused: has odd heads")],
)
def test_however_vllm_ends_is_its_cell(tmp_path, in_its_place, name, shown, monkeypatch):
    monkeypatch.setattr("foreword.bench.participants.Peer.missing", lambda peer: None)
    in_its_place(name)
    result = measured(tmp_path, "qwen2", peers=("vllm",))
    assert result.failed == []
    (record,) = result.records
    assert str(tmp_path) not in str(record.metrics["vllm"])
    assert "difference" in record.metrics["engine"]
    assert Conformance().tables([record]).splitlines()[-1].endswith(f"| missing | {shown} | missing |")
    assert not next(goal for goal in result.summary.goals if goal.name.startswith("vllm/")).met


def test_one_that_is_late_is_ended():
    with Worker("sleepy", "vllm_doubles:sleepy", {}) as worker:
        with columns.deadline(worker, 60):
            worker.ask("sleep", seconds=0.01)
        late = pytest.raises(BenchError, match=r"^sleepy failed: it did not answer within 0.5 seconds$")
        with late, columns.deadline(worker, 0.5):
            worker.ask("sleep", seconds=60)


def test_steps_are_compared_until_the_tokens_part():
    known = (7, ((7, -0.5), (8, -1.0), (9, -3.0)))
    assert columns.compared([[known, known]], [[known, known]]) == {"difference": 0.0, "same_tokens": True}
    swapped = (8, ((8, -0.75), (7, -0.875)))
    parted = columns.compared([[swapped, (1, ((1, -99.0),))]], [[known, known]])
    assert parted == {"difference": 0.375, "same_tokens": False}
    unknown = (7, ((7, -0.5), (1, -1.0)))
    assert columns.compared([[unknown]], [[known]])["difference"] == 2.0
    assert "no numbers" in columns.compared([[known, (7, ((7, float("nan")),))]], [[known, known]])["failed"]


@pytest.mark.parametrize(
    ("raised", "found"),
    [
        ("foreword.errors.UnsupportedModel: X keeps  other state.", {"refused": "X keeps other state."}),
        ("RuntimeError: Unsupported heads: 12", {"refused": "vLLM says Unsupported heads: 12"}),
        ("ValueError: Available memory is less", {"failed": "vLLM says Available memory is less"}),
        ("Loading: 100%", {"failed": "vLLM did not start."}),
    ],
)
def test_what_vllm_died_of_is_found_in_what_it_printed(raised, found):
    log = (
        "Loading: 50%\n"
        "(Worker pid=1) ERROR 11-28 19:40:00 [w.py:1] Traceback (most recent call last):\n"
        f"(Worker pid=1) ERROR 11-28 19:40:00 [w.py:1] {raised}\n"
        "(EngineCore pid=1) ERROR 11-28 19:40:01 [core.py:2] Exception: WorkerProc initialization failed due to\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
        "(MainProcess pid=1) ERROR vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n"
    )
    assert ended(log, EngineError("vLLM did not start.")) == found


@pytest.mark.parametrize(
    ("found", "row"),
    [
        ({"difference": 0.0}, "| Llama | 0 | 0 | 0 | 0 | missing | missing |"),
        ({"refused": "X hides it."}, "| Llama | refused: hides it | refused | refused | refused | missing | missing |"),
    ],
)
def test_a_record_from_before_a_column_lacks_it(make_record, found, row):
    record = make_record("conformance", "llama", dict.fromkeys(COLUMNS, found))
    record.settings["title"] = "Llama"
    assert Conformance().tables([record]).splitlines()[-1] == row


def test_a_larger_difference_is_not_met(make_record):
    found = {column: {"difference": 1e-6} for column in Conformance.columns}
    records = [make_record("conformance", "llama", found)]
    assert [goal.met for goal in Conformance().summary(records).goals] == [True] * 6
    records.append(make_record("conformance", "opt", {**found, "engine": {"difference": 2e-4}}))
    assert [goal.met for goal in Conformance().summary(records).goals] == [True, True, False, True, True, True]
    assert not any(goal.met for goal in Conformance().summary([]).goals)
