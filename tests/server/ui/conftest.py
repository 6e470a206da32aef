"""One server with the page and one browser; tests that publish use banks or task names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import RunningServer, chat_model, publish_all

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from server.ui.browser import Visitor


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'foreword[ui]'")
    lm, bank = chat_model(), Bank(tmp_path_factory.mktemp("bank"))
    publish_all(bank, lm)
    with Engine(lm, cache_bytes=1 << 24) as engine, serve_in_background(create_app(engine, bank, ui=True)) as url:
        yield RunningServer(url, lm, engine, bank)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright", reason="a browser is driven by Playwright: pip install playwright")
    from server.ui.browser import running_browser

    with running_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Opens browser contexts; keywords are those of Playwright's ``new_context``."""
    from server.ui.browser import DESKTOP, Visitor

    contexts = []

    def visit(**options) -> Visitor:
        contexts.append(browser.new_context(**{"locale": "en-US", "viewport": DESKTOP, **options}))
        contexts[-1].set_default_timeout(10_000)
        return Visitor(contexts[-1].new_page())

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def visitor(visit: Callable[..., Visitor], server: RunningServer) -> Visitor:
    """A desktop browser that has just opened the page."""
    return visit().open(server.url)
