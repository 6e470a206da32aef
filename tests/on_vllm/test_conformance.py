"""The matrix's column, and that a prefix which vLLM has not got would be seen in it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from benchmarks.conformance.columns import TOP, VLLM_PEER, compared, on_vllm
from benchmarks.conformance.engine_steps import decoded
from benchmarks.conformance.families import FAMILIES
from benchmarks.conformance.pairs import load_pair
from foreword.bench.conformance import GOAL
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine


@pytest.mark.slow  # one more start
def test_sinks_experts_and_windows_are_the_embedded_engine_s(tmp_path, monkeypatch):
    """No other model here has them."""
    monkeypatch.delenv(VLLM_PEER.variable, raising=False)  # it runs in this very Python
    found = on_vllm(load_pair(FAMILIES["gpt_oss"], tmp_path, 0))
    assert found["same_tokens"]
    assert found["difference"] < GOAL


def test_a_lost_prefix_is_a_number(served, engine):
    asked = [
        {"task": f"t{index}", "length": task.prefix.length, "token_ids": (5, 17, 90)}
        for index, task in enumerate(served.tasks)
    ]
    with Engine(served.lm) as embedded:
        expected = decoded(embedded, served.bank, asked, MAX_LOGPROBS)
    assert compared(decoded(engine, served.bank, asked, TOP), expected)["difference"] < GOAL
    for each, known in zip(asked, expected, strict=True):
        lost = {**each, "task": None, "length": 0}
        assert compared(decoded(engine, served.bank, [lost], TOP), [known])["difference"] > 100 * GOAL, each
