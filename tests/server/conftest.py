"""One server for all tests that only ask; tests that publish use names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running import House, chat_model, publish_all


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    lm, bank = chat_model(), Bank(tmp_path_factory.mktemp("bank"))
    publish_all(bank, lm)
    with Engine(lm, cache_bytes=1 << 24) as engine, serve_in_background(create_app(engine, bank)) as url:
        yield House(url, lm, engine, bank)


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with house.client() as client:
        yield client
