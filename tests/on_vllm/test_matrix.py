"""The embedded engine's tokens again, over models, block sizes, with and without vLLM's own cache, on two workers."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm-full")

from on_vllm.houses import LENGTHS, open_house, save_model, tokens, vllm_engine

pytestmark = pytest.mark.slow

CACHED = ("--enable-prefix-caching",)
UNCACHED = ("--no-enable-prefix-caching",)


@pytest.fixture(scope="module", params=["llama", "gemma3", "built-in"])
def house(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    folder = None if request.param == "built-in" else save_model(request.param, place / "model")
    return open_house(folder, place / "bank", LENGTHS)


@pytest.fixture(scope="module")
def asked(house):
    requests = house.requests(200)
    return requests, house.expected(requests)


@pytest.mark.parametrize("caching", [CACHED, UNCACHED], ids=["cached", "uncached"])
@pytest.mark.parametrize("block", [32, 128])
def test_mixed_requests_get_the_embedded_engine_s_tokens(house, asked, block, caching):
    requests, expected = asked
    with vllm_engine(house, "--block-size", str(block), "--max-model-len", "512", *caching) as engine:
        assert tokens(engine, requests) == expected
        assert tokens(engine, requests[::-1]) == expected[::-1]  # once more, from what is cached by now


def test_each_of_two_workers_takes_its_heads(house, asked):
    if house.lm.identity.layers[0].kv_heads % 2:
        pytest.skip("an odd number of heads is not divided in two")
    requests, expected = asked
    with vllm_engine(house, "--tensor-parallel-size", "2", "--max-model-len", "512") as engine:
        assert tokens(engine, requests) == expected


def test_what_fails_to_load_fails_alone_with_groups_of_layers(house):
    import shutil
    from pathlib import Path

    from foreword.core import SamplingParams
    from foreword.engine.protocol import Request
    from foreword.text.request import from_ids

    lost = house.publish("lost", 107)
    name, _, version = lost.ref.partition("@")
    shutil.rmtree(Path(house.bank.place) / name / "versions" / version)
    good = house.requests(10, seed=4)
    with vllm_engine(house, "--max-model-len", "512") as engine:
        chunks = list(engine.submit(Request.of(from_ids(lost, (1, 2, 3)), SamplingParams(max_tokens=4))))
        assert chunks[-1].finish_reason == "error"
        assert tokens(engine, good) == house.expected(good)
