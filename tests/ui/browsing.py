"""A real Chromium, and a visitor in front of the page."""

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
ARTEFACTS = Path(__file__).parents[2] / "runs" / "ui"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


def chromium() -> str:
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
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody who looks at the page and types.

    Attributes:
        page: his tab.
        requests: addresses that his browser asked for.
        complaints: errors on the browser's console.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def open(self, url: str) -> Visitor:
        self.page.goto(f"{url}/ui")
        expect(self.page.locator("#models .token").first).to_be_visible()
        return self

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def choose(self, field: str, *names: str) -> None:
        """Exactly these in a list that takes several."""
        chosen = self.page.locator(f"#{field}")
        while (remove := chosen.locator(".token-remove:not(.remove-all)")).count():
            remove.first.click()
        for name in names:
            chosen.locator("input").fill(name)
            self.page.get_by_role("option", name=name, exact=True).click()
        self.page.keyboard.press("Escape")

    def ask(self, text: str, *models: str) -> Locator:
        """The cards of the answers, complete."""
        if models:
            self.choose("models", *models)
        self.page.locator("#question textarea").fill(text)
        self.page.locator("#ask").click()
        return self.answered(len(models) or None)

    def answered(self, count: int | None = None) -> Locator:
        cards = self.page.locator("#answers .card")
        if count is not None:
            expect(cards).to_have_count(count)
        expect(cards.first).to_be_visible()
        expect(self.page.locator("#answers .card[aria-busy=true]")).to_have_count(0)
        return cards

    def keep(self, name: str) -> None:
        """A screenshot as it is now, kept for whoever reads the tests' results."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")
