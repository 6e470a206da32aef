"""The matrix's column, and that a prefix which vLLM has not got would be seen in it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from foreword.bench.conformance.families import FAMILIES
from foreword.bench.conformance.on_vllm import TOP, compared, on_vllm
from foreword.bench.conformance.subject import Subject
from foreword.bench.conformance.vllm_side import answered
from foreword.bench.conformance.workload import GOAL, VLLM
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine


@pytest.mark.slow  # one more start
def test_sinks_experts_and_windows_are_the_embedded_engine_s(tmp_path, monkeypatch):
    """No other model here has them."""
    monkeypatch.delenv(VLLM.variable, raising=False)  # it runs in this very Python
    found = on_vllm(Subject.of(FAMILIES["gpt_oss"], tmp_path, 0))
    assert found["same_tokens"]
    assert found["difference"] < GOAL


def test_a_lost_prefix_is_a_number(served, engine):
    asked = [
        {"task": f"t{index}", "length": task.prefix.length, "token_ids": (5, 17, 90)}
        for index, task in enumerate(served.tasks)
    ]
    with Engine(served.lm) as embedded:
        expected = answered(embedded, served.bank, asked, MAX_LOGPROBS)
    assert compared(answered(engine, served.bank, asked, TOP), expected)["difference"] < GOAL
    for each, known in zip(asked, expected, strict=True):
        lost = {**each, "task": None, "length": 0}
        assert compared(answered(engine, served.bank, [lost], TOP), [known])["difference"] > 100 * GOAL, each
