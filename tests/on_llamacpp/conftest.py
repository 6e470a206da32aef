"""One tiny model and one engine with a small cache for all tests that ask an engine in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from on_llamacpp.model_fixtures import gguf_house, llamacpp_engine
from on_vllm.model_fixtures import House

CELLS = 1024
"""Less than all prefixes together, so that they take turns."""


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> House:
    return gguf_house("llama", tmp_path_factory.mktemp("llamacpp"))


@pytest.fixture(scope="session")
def half_house(tmp_path_factory) -> House:
    return gguf_house("llama", tmp_path_factory.mktemp("llamacpp-half"), half=True)


@pytest.fixture(scope="session")
def running(house) -> Iterator:
    with llamacpp_engine(house, cells=CELLS, step_tokens=64, max_batch=32) as engine:
        yield engine


@pytest.fixture
def engine(running) -> Iterator:
    """After every test, what is counted is what is held, and nobody holds anything."""
    yield running
    assert running.statistics()["running"] == running.statistics()["waiting"] == 0
    running.cells.check()
    assert running.cells.num_free == CELLS
