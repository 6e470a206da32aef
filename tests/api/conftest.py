"""The same tasks on an engine of this process and on a server over a socket, each asked from Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import foreword
from foreword.api.client import Client
from foreword.api.local_engine import LocalEngine
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.models import LanguageModel
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import chat_model, publish_all
from training.small_data import recipe


@pytest.fixture(scope="package")
def lm() -> LanguageModel:
    return chat_model()


@pytest.fixture(scope="package")
def tagger(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A task that tags words, which nothing was learned for."""
    folder = tmp_path_factory.mktemp("tagger")
    rows = [{"text": ["play", "some", "jazz"], "label": ["O", "O", "B-genre"]}] * 12
    from training.small_data import write_jsonl

    data = write_jsonl(folder / "tags.jsonl", rows)
    settings = {"data": data, "eval": data, "head": "linear", "template": None, "max_steps": 1}
    return foreword.train(lm, recipe(folder, **settings), name="slots", say=lambda line: None).task


@pytest.fixture(scope="package")
def bank(lm: LanguageModel, tagger: Task, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    bank = Bank(tmp_path_factory.mktemp("bank"))
    publish_all(bank, lm)
    bank.publish(tagger)
    return bank


@pytest.fixture(scope="package")
def engine(lm: LanguageModel, bank: Bank) -> Iterator[LocalEngine]:
    with foreword.Engine(lm, bank=bank) as engine:
        yield engine


@pytest.fixture(scope="package")
def remote(lm: LanguageModel, bank: Bank) -> Iterator[Client]:
    with (
        Engine(lm, cache_bytes=1 << 24) as running,
        serve_in_background(create_app(running, bank)) as url,
        foreword.connect(url) as client,
    ):
        yield client


@pytest.fixture(params=["engine", "remote"])
def client(request: pytest.FixtureRequest) -> Client:
    """Either of the two: what holds for one holds for the other."""
    return request.getfixturevalue(request.param)
