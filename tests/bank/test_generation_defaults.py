"""Generation defaults of a task have the types and bounds of a request's: checked on publishing, and on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bank.conftest import build_task
from foreword.bank.bank import Bank
from foreword.bank.names import make_version
from foreword.bank.record import content_digest, make_record, parse_record, write_record
from foreword.errors import CorruptFile, UsageError
from foreword.evaluation.sampling_params import task_sampling_params

WRONG: list[dict[str, Any]] = [
    {"max_tokens": "5"},
    {"max_tokens": True},
    {"max_tokens": 10**40},
    {"max_tokens": -1},
    {"temperature": "hot"},
    {"temperature": None},
    {"temperature": 1e300},
    {"top_p": [0.5]},
    {"top_k": 2.5},
    {"seed": 2**64},
    {"stop": 3},
    {"stop": [3]},
    {"stop": {"a": 1}},
    {"stop": ["a" * 20_000]},
    {"stop": ["a"] * 40},
    {"stop_token_ids": ["a"]},
    {"stop_token_ids": [-(10**30)]},
    {"ignore_eos": 1},
    {"logit_bias": [1]},
    {"logit_bias": {"a": 1}},
    {"logit_bias": {"1" * 5000: 1}},
    {"logit_bias": {"1": "a"}},
    {"min_tokens": 5, "max_tokens": 4},
]
RIGHT: list[dict[str, Any]] = [
    {"max_tokens": 5, "stop": ["\n"], "temperature": 1},
    {"stop": "END"},
    {"min_tokens": 500},
    {"logit_bias": {"5": -1.5}, "stop_token_ids": [3], "seed": -(2**63)},
]


def signed(defaults: object) -> bytes:
    """A ``task.json`` with these defaults that knows its own digest."""
    record = make_record(build_task(), 1, {"prefix.safetensors": {"size": 1, "sha256": "0" * 64}})
    record = {**record, "generation": defaults}
    return write_record({**record, "version": make_version(1, content_digest(record))})


@pytest.mark.parametrize("defaults", WRONG, ids=lambda defaults: str(defaults)[:40])
def test_wrong_defaults_are_neither_published_nor_read(tmp_path: Path, defaults) -> None:
    with pytest.raises(UsageError, match="generation defaults of task"):
        Bank(tmp_path).publish(build_task(generation=defaults))
    with pytest.raises(CorruptFile, match=r"^here: generation: .*; publish it again or restore") as caught:
        parse_record(signed(defaults), "here", "sst2")
    assert len(str(caught.value)) < 300


def test_right_ones_are_read() -> None:
    assert parse_record(signed({"max_tokens": 3}), "here", "sst2")["generation"] == {"max_tokens": 3}


@pytest.mark.parametrize("defaults", RIGHT, ids=str)
def test_right_defaults_are_those_of_a_request(tmp_path: Path, defaults) -> None:
    Bank(tmp_path).publish(build_task(generation=defaults))
    params = task_sampling_params(Bank(tmp_path).load("sst2"), max_tokens=1000)
    assert params.stop == tuple([defaults["stop"]] if defaults.get("stop") == "END" else defaults.get("stop", ()))
    assert params.logit_bias == {int(key): value for key, value in defaults.get("logit_bias", {}).items()}
    assert params.min_tokens == defaults.get("min_tokens", 0)
