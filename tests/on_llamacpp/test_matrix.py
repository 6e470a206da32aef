"""The matrix's column, and that a prefix which llama.cpp has not got would be seen in it."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

from foreword.bench.conformance.families import FAMILIES
from foreword.bench.conformance.on_llamacpp import on_llamacpp
from foreword.bench.conformance.on_vllm import TOP, compared
from foreword.bench.conformance.subject import Subject
from foreword.bench.conformance.vllm_side import answered
from foreword.bench.conformance.workload import GOAL, LLAMACPP
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine
from foreword.errors import UnsupportedModel
from served_model import CACHE_BYTES


@pytest.mark.parametrize("key", ["llama", "qwen2", "qwen3"])
def test_families_that_are_run(tmp_path, monkeypatch, key):
    monkeypatch.delenv(LLAMACPP.variable, raising=False)  # it runs in this very Python
    found = on_llamacpp(Subject.of(FAMILIES[key], tmp_path, 0))
    assert found["difference"] < GOAL, found


def test_other_families_are_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"OPTForCausalLM is not run on llama\.cpp"):
        on_llamacpp(Subject.of(FAMILIES["opt"], tmp_path, 0))


def test_a_lost_prefix_is_a_number(served, engine):
    asked = [
        {"task": f"t{index}", "length": task.prefix.length, "token_ids": (5, 17, 90)}
        for index, task in enumerate(served.tasks)
    ]
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = answered(embedded, served.bank, asked, MAX_LOGPROBS)
    assert compared(answered(engine, served.bank, asked, TOP), expected)["difference"] < GOAL
    lost = [{**each, "task": None, "length": 0} for each in asked]
    for each, known in zip(lost, expected, strict=True):
        assert compared(answered(engine, served.bank, [each], TOP), [known])["difference"] > 10 * GOAL, each
