"""One server for all tests that only send requests; tests that publish use task names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import RunningServer, chat_model, publish_all


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    lm, bank = chat_model(), Bank(tmp_path_factory.mktemp("bank"))
    publish_all(bank, lm)
    with Engine(lm, cache_bytes=1 << 24) as engine, serve_in_background(create_app(engine, bank)) as url:
        yield RunningServer(url, lm, engine, bank)


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
