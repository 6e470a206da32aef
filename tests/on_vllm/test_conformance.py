"""The matrix's column, on a family that nothing else here has: sinks, experts, and a window in every other layer."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from foreword.bench.conformance.families import FAMILIES
from foreword.bench.conformance.on_vllm import on_vllm
from foreword.bench.conformance.subject import Subject
from foreword.bench.conformance.workload import GOAL, VLLM


def test_log_probabilities_are_the_embedded_engine_s(tmp_path, monkeypatch):
    monkeypatch.delenv(VLLM.variable, raising=False)  # it runs in this very Python
    found = on_vllm(Subject.of(FAMILIES["gpt_oss"], tmp_path, 0))
    assert found["same_tokens"]
    assert found["difference"] < GOAL
