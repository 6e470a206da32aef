"""One vLLM for all tests that ask an engine in this process: a start takes half a minute."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from on_vllm.model_fixtures import BLOCK, BLOCKS, House, open_house, save_model, vllm_engine

# Of its cache, in GiB; the tests bound it by blocks.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> House:
    place = tmp_path_factory.mktemp("vllm")
    return open_house(save_model("llama", place / "model"), place / "bank")


@pytest.fixture(scope="session")
def engine(house) -> Iterator:
    small = ("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(BLOCKS), "--max-num-batched-tokens", "64")
    with vllm_engine(house, *small, "--enable-prompt-embeds") as running:
        yield running
