"""One vLLM for all tests of an engine in this process: a start takes half a minute."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from on_vllm.running_engine import BLOCK, NUM_BLOCKS, vllm_engine
from served_model import ServedModel, make_served_model, save_model

# Of its cache, in GiB; the tests bound it by blocks.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> ServedModel:
    place = tmp_path_factory.mktemp("vllm")
    return make_served_model(save_model("llama", place / "model"), place / "bank")


@pytest.fixture(scope="session")
def engine(served) -> Iterator:
    small = ("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(NUM_BLOCKS), "--max-num-batched-tokens", "64")
    with vllm_engine(served, *small, "--enable-prompt-embeds") as running:
        yield running
