"""The calls of `foreword.Engine` over a vLLM engine that runs already."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import foreword


def test_the_calls_are_the_same(engine, served):
    with foreword.Engine(engine, bank=served.bank) as ours, foreword.Engine(served.lm, bank=served.bank) as embedded:
        assert ours.tasks() == embedded.tasks()
        for task in (None, "t0", "t1"):
            options = {"task": task, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            expected = embedded.generate("Once", **options).token_ids
            assert ours.generate("Once", **options).token_ids == expected
        chunks = list(ours.stream_generate("Once", task="t0", max_tokens=8, temperature=0, ignore_eos=True))
        assert chunks[-1].usage.completion_tokens == 8
    assert engine.alive
