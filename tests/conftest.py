"""Settings that must stand before torch loads, and the options of `tests/trust`, which pytest reads here alone."""

import os

import pytest

# Tiny models on shared cores: spinning threads would only take time from one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The suite runs one worker a core, so a worker and the processes that it starts keep to one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trust", "attacks, in tests/trust")
    group.addoption("--trust", choices=("short", "long"), default="short", help="how much is tried")
    group.addoption("--engine", choices=("embedded", "vllm", "llamacpp"), default="embedded", help="of its servers")
