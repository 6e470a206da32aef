"""One tiny model and one engine with a small cache for all tests that ask an engine in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from on_llamacpp.gguf_models import llamacpp_engine, make_gguf_model
from served_model import ServedModel

CELLS = 1024
"""Less than all prefixes together, so that they take turns."""


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> ServedModel:
    return make_gguf_model("llama", tmp_path_factory.mktemp("llamacpp"))


@pytest.fixture(scope="session")
def served_float16(tmp_path_factory) -> ServedModel:
    return make_gguf_model("llama", tmp_path_factory.mktemp("llamacpp-half"), half=True)


@pytest.fixture(scope="session")
def shared_engine(served) -> Iterator:
    with llamacpp_engine(served, cells=CELLS, step_tokens=64, max_batch=32) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine) -> Iterator:
    """Checks after every test that the cache is consistent and free."""
    yield shared_engine
    assert shared_engine.statistics()["running"] == shared_engine.statistics()["waiting"] == 0
    shared_engine.allocator.check()
    assert shared_engine.allocator.num_free == CELLS
