"""The matrix's column, and that a prefix which llama.cpp has not got would be seen in it."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")


from benchmarks.conformance.columns import LLAMACPP_PEER, TOP, compared, on_llamacpp
from benchmarks.conformance.engine_steps import decoded
from benchmarks.conformance.families import FAMILIES
from benchmarks.conformance.pairs import load_pair
from foreword.bench.conformance import GOAL
from foreword.core.sampling import MAX_LOGPROBS
from foreword.engine.engine import Engine
from foreword.errors import UnsupportedModel
from served_model import CACHE_BYTES


@pytest.mark.parametrize("key", ["llama", "qwen2", "qwen3"])
def test_families_that_are_run(tmp_path, monkeypatch, key):
    monkeypatch.delenv(LLAMACPP_PEER.variable, raising=False)  # it runs in this very Python
    found = on_llamacpp(load_pair(FAMILIES[key], tmp_path, 0))
    assert found["difference"] < GOAL, found


def test_other_families_are_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"OPTForCausalLM is not run on llama\.cpp"):
        on_llamacpp(load_pair(FAMILIES["opt"], tmp_path, 0))


def test_a_lost_prefix_is_a_number(served, engine):
    asked = [
        {"task": f"t{index}", "length": task.prefix.length, "token_ids": (5, 17, 90)}
        for index, task in enumerate(served.tasks)
    ]
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = decoded(embedded, served.bank, asked, MAX_LOGPROBS)
    assert compared(decoded(engine, served.bank, asked, TOP), expected)["difference"] < GOAL
    lost = [{**each, "task": None, "length": 0} for each in asked]
    for each, known in zip(lost, expected, strict=True):
        assert compared(decoded(engine, served.bank, [each], TOP), [known])["difference"] > 10 * GOAL, each
