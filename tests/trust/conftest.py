"""Everything in this folder has the marker `trust`, which ``make test`` leaves out; see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from trust.two_tenants import TwoTenants
from trust.victim import Victim, make_victim

HERE = Path(__file__).parent
Amount = TypeVar("Amount")
Scale = Callable[[Amount, Amount], Amount]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.trust)


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    """``scale(short, long)``: how many, how often or how many seconds, as ``--trust`` says."""
    return lambda short, long: long if pytestconfig.getoption("--trust") == "long" else short


@pytest.fixture(scope="session")
def engine_kind(pytestconfig: pytest.Config) -> str:
    """Of the servers, as ``--engine`` says."""
    return pytestconfig.getoption("--engine")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, engine_kind: str) -> Victim:
    return make_victim(tmp_path_factory.mktemp("victim"), engine_kind)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, victim: Victim) -> Iterator[Callable[..., TwoTenants]]:
    """``start(*flags)``: servers of the victim's model and bank, stopped at the end of the file."""
    running: list[TwoTenants] = []

    def start(*flags: str, **limits: dict[str, int]) -> TwoTenants:
        running.append(TwoTenants(tmp_path_factory.mktemp("server"), victim, *flags, **limits))
        return running[-1]

    yield start
    for server in running:
        server.stop()
