"""The calls of `foreword.Engine` over llama.cpp are answered as over the embedded engine."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

import foreword
from foreword.errors import UsageError
from on_llamacpp.gguf_models import gguf_file


def test_the_calls_are_the_same(served):
    file, bank = str(gguf_file(served)), served.bank.location
    with (
        foreword.Engine(file, engine="llamacpp", bank=bank, allow_other_weights=True) as engine,
        foreword.Engine(served.lm, bank=bank) as embedded,
    ):
        assert engine.tasks() == embedded.tasks()
        for task in (None, "t0", "t1"):
            options = {"task": task, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            expected = embedded.generate("Once", **options).token_ids
            assert engine.generate("Once", **options).token_ids == expected
            chunks = list(engine.stream_generate("Once", task=task, max_tokens=8, temperature=0, ignore_eos=True))
            assert chunks[-1].usage.completion_tokens == len(expected)
        given = engine.generate("Once", task=engine.bank.load("t0"), max_tokens=8, temperature=0)
        assert given.text == engine.generate("Once", task="t0", max_tokens=8, temperature=0).text


def test_a_loaded_model_is_for_the_embedded_engine(served):
    with pytest.raises(UsageError, match="loads its model by itself"):
        foreword.Engine(served.lm, engine="llamacpp")
