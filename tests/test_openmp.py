"""OpenMP workers are released by every thread but the engine's."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.openmp import _pause, release_openmp_threads
from tiny_models import tiny_model

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or _pause() is None, reason="PyTorch does not run on libgomp here"
)
LARGE = 1 << 20


def workers() -> int:
    """Threads of this process that Python has not started."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    release_openmp_threads()
    yield
    torch.set_num_threads(before)


def test_workers_end_and_come_back():
    before = workers()
    assert torch.ones(LARGE).exp().sum() > LARGE
    assert workers() == before + 1
    release_openmp_threads()
    assert workers() == before
    assert torch.ones(LARGE).exp().sum() > LARGE
    assert workers() == before + 1


def test_an_engine_leaves_no_workers_to_the_thread_that_made_it():
    before = workers()
    torch.ones(LARGE).exp()
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        assert workers() == before
        list(engine.submit(Request((1, 2, 3), sampling=SamplingParams(max_tokens=2))))
