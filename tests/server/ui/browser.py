"""Chromium, and a visitor who drives the page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

expect.set_options(timeout=15_000)  # other tests share the cores
SCREENSHOTS = Path(__file__).parents[3] / "runs" / "ui"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


def chromium_path() -> str:
    """The browser's path: ``$FOREWORD_CHROMIUM``, or one that is on the path. Skips where there is none."""
    named = os.environ.get("FOREWORD_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium: install Debian's chromium, or name one in $FOREWORD_CHROMIUM")
    return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=flags)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Drives the page in one browser tab.

    Attributes:
        page: the tab.
        requests: URLs that the browser requested.
        console_errors: the browser's console.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    console_errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        self.page.on("console", self._on_console)

    def _on_console(self, message) -> None:
        if message.type == "error":
            self.console_errors.append(message.text)

    def open(self, url: str) -> Visitor:
        self.page.goto(f"{url}/ui")
        expect(self.page.locator("#models .token").first).to_be_visible()
        return self

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def choose(self, field: str, *names: str) -> None:
        """Select exactly these in a list that takes several."""
        chosen = self.page.locator(f"#{field}")
        while (remove := chosen.locator(".token-remove:not(.remove-all)")).count():
            remove.first.click()
        for name in names:
            chosen.locator("input").fill(name)
            self.page.get_by_role("option", name=name, exact=True).click()
        self.page.keyboard.press("Escape")

    def ask(self, text: str, *models: str) -> Locator:
        """Ask, and return the cards of the complete answers."""
        if models:
            self.choose("models", *models)
        self.page.locator("#question textarea").fill(text)
        self.page.locator("#ask").click()
        return self.finished_answers(len(models) or None)

    def finished_answers(self, count: int | None = None) -> Locator:
        cards = self.page.locator("#answers .card")
        if count is not None:
            expect(cards).to_have_count(count)
        expect(cards.first).to_be_visible()
        expect(self.page.locator("#answers .card[aria-busy=true]")).to_have_count(0)
        return cards

    def screenshot(self, name: str) -> None:
        """Keep a screenshot among the artefacts of the test run."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
