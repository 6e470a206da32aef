"""The page in a real browser, over a real server: what a visitor sees, types and gets."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from foreword.bank.bank import Bank
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.api_keys import ApiKey, ApiKeys, digest_of
from foreword.server.operations.auth import Authenticator
from server.running_server import RunningServer, label_task, learned_task, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright and Chromium")
expect = playwright.expect

if TYPE_CHECKING:
    from server.ui.browser import Visitor

BASE = "tiny-llama"


def api_answer(server: RunningServer, model: str, question: str, tokens: int = 128) -> str:
    """The model's answer over the API."""
    messages = [{"role": "user", "content": question}]
    with server.client() as client:
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, temperature=0)
    return answer.choices[0].message.content or ""


def visible_characters(text: str) -> str:
    """Text without white space and control characters, which a browser draws in its own_server way."""
    return "".join(character for character in text if character.isprintable() and not character.isspace())


def test_it_loads_from_this_server_alone(visitor: Visitor, server: RunningServer):
    expect(visitor.page).to_have_title("Foreword")
    expect(visitor.page.get_by_role("heading", name="Foreword")).to_be_visible()
    expect(visitor.page.get_by_text(BASE).first).to_be_visible()
    visitor.tab("Classify")
    visitor.tab("Tasks")
    visitor.page.wait_for_timeout(300)
    assert [url for url in visitor.requests if not url.startswith((server.url, "data:", "blob:"))] == []
    assert visitor.console_errors == []


def test_the_server_tells_nobody(visit: Callable[..., Visitor], server: RunningServer):
    connected: list[object] = []
    listening = True

    def on_audit_event(event: str, args: tuple) -> None:
        if listening and event == "socket.connect" and isinstance(args[1], tuple):
            connected.append(args[1][0])

    sys.addaudithook(on_audit_event)
    with serve_in_background(create_app(server.engine, server.bank, ui=True)) as url:
        visit().open(url).ask("Hello", BASE)
    listening = False
    assert set(connected) <= {"127.0.0.1", "::1"}


def test_base_and_tasks_side_by_side(visitor: Visitor, server: RunningServer):
    models = (BASE, "poet", "kind")
    cards = visitor.ask("Who are you?", *models)
    for index, model in enumerate(models):
        card = cards.nth(index)
        expect(card.get_by_role("heading")).to_contain_text(model)
        assert visible_characters(card.locator(".text").inner_text()) == visible_characters(
            api_answer(server, model, "Who are you?")
        )
        expect(card.locator(".figures")).to_contain_text("first token")
        assert re.fullmatch(r"\d+ ms|\d+\.\d\d s", card.locator("dd").nth(0).inner_text())
        assert re.fullmatch(r"\d+ of \d+", card.locator("dd").nth(2).inner_text())
    assert float(cards.nth(1).locator("dd").nth(1).inner_text()) > 0
    expect(cards.nth(1).get_by_role("heading")).to_contain_text(server.bank.current("poet"))
    cached = int(cards.nth(1).locator("dd").nth(2).inner_text().split()[0])
    assert cached >= server.bank.load("poet").prefix.length
    visitor.screenshot("playground-desktop")


def test_switching_to_another_task(visitor: Visitor, server: RunningServer):
    visitor.ask("Hello", BASE, "poet")
    cards = visitor.ask("Hello", "story")
    expect(cards.first.get_by_role("heading")).to_contain_text("story")
    assert visible_characters(cards.first.locator(".text").inner_text()) == visible_characters(
        api_answer(server, "story", "Hello")
    )


def test_stopping_frees_the_engine(visitor: Visitor, server: RunningServer):
    page = visitor.page
    page.locator("#settings button").click()
    page.get_by_label("number input for Longest answer, in tokens").fill("180")
    visitor.choose("models", BASE, "poet")
    page.locator("#question textarea").fill("Go")
    page.locator("#ask").click()
    expect(page.locator("#answers .card[aria-busy=true] .text").first).to_be_visible()
    page.locator("#stop").click()
    wait_until(lambda: server.engine.statistics()["running"] == 0, seconds=5)


def test_fields_of_a_template(visitor: Visitor, server: RunningServer):
    cards = visitor.ask('{"first": "one", "second": "two"}', "pair")
    with server.client() as client:
        fields = {"inputs": {"first": "one", "second": "two"}}
        answer = client.completions.create(model="pair", prompt=None, max_tokens=128, temperature=0, extra_body=fields)
    assert visible_characters(cards.first.locator(".text").inner_text()) == visible_characters(answer.choices[0].text)


def test_classifying(visitor: Visitor, server: RunningServer):
    visitor.tab("Classify")
    visitor.choose("labellers", "mood", "pair")
    visitor.page.locator("#sample textarea").fill("a fine day")
    visitor.page.locator("#sample textarea").press("Enter")
    cards = visitor.page.locator("#probabilities .card")
    expect(cards).to_have_count(2)
    asked = httpx.post(f"{server.url}/v1/classify", json={"model": "mood", "input": "a fine day"})
    probs = asked.json()["data"][0]["probs"]
    best = max(probs, key=probs.__getitem__)
    bars = cards.nth(0).locator("li")
    expect(bars).to_have_count(2)
    expect(bars.nth(0)).to_contain_text(best)
    expect(bars.nth(0)).to_contain_text(f"{probs[best]:.1%}")
    width = bars.nth(0).locator("i").evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
    assert width == pytest.approx(probs[best], abs=0.02)
    expect(cards.nth(1).get_by_role("alert")).to_contain_text("a text, and the template of task 'pair' has 2 fields")
    visitor.screenshot("classify-desktop")


@pytest.fixture
def own_server(server: RunningServer, tmp_path) -> Iterator[RunningServer]:
    """The same engine over a bank that a test may change."""
    bank = Bank(tmp_path)
    for seed in (1, 2):
        bank.publish(learned_task(server.lm, "poet", seed))
    with serve_in_background(create_app(server.engine, bank, ui=True)) as url:
        yield RunningServer(url, server.lm, server.engine, bank)


def test_rolling_back(visit: Callable[..., Visitor], own_server: RunningServer):
    visitor = visit().open(own_server.url)
    first, second = own_server.bank.versions("poet")
    expect(visitor.ask("Hello", "poet").first.get_by_role("heading")).to_contain_text(second)
    visitor.tab("Tasks")
    expect(visitor.page.locator("#tasks")).to_contain_text("p-tuning-v2")
    expect(visitor.page.locator("#versions tbody tr")).to_have_count(2)
    expect(visitor.page.locator("#versions tbody tr").first).to_contain_text("served")
    visitor.screenshot("tasks-desktop")
    visitor.page.locator("#rollback").click()
    expect(visitor.page.locator("#done").get_by_role("status")).to_contain_text(
        f"poet@{first} is served now.", use_inner_text=True
    )
    assert own_server.bank.current("poet") == first
    expect(visitor.page.locator("#versions tbody tr").nth(1)).to_contain_text("served")
    visitor.tab("Playground")
    expect(visitor.ask("Hello", "poet").first.get_by_role("heading")).to_contain_text(first)


def test_what_is_published_meanwhile_is_offered(visit: Callable[..., Visitor], own_server: RunningServer):
    visitor = visit().open(own_server.url)
    own_server.bank.publish(label_task(own_server.lm, "fresh"))
    visitor.tab("Tasks")
    visitor.page.locator("#refresh").click()
    expect(visitor.page.locator("#tasks")).to_contain_text("fresh")
    visitor.tab("Playground")
    visitor.choose("models", "fresh")


def test_errors_are_sentences(visit: Callable[..., Visitor], own_server: RunningServer):
    visitor = visit().open(own_server.url)
    visitor.page.locator("#ask").click()
    expect(visitor.page.get_by_role("alert")).to_have_text("Type something first.", use_inner_text=True)
    visitor.choose("models", BASE, "poet")
    own_server.bank.remove("poet")
    cards = visitor.ask("Hello")
    expect(cards.nth(1).get_by_role("alert")).to_contain_text("the model 'poet' does not exist")
    expect(cards.nth(0).locator(".text")).to_be_visible()
    visitor.screenshot("error-desktop")
    expect(visitor.ask("x" * 400).nth(0).get_by_role("alert")).to_be_visible()


def test_what_others_wrote_is_text(visit: Callable[..., Visitor], own_server: RunningServer):
    label = "<img src=x onerror=document.title='taken'>${1+1}{{value}}"
    task = label_task(own_server.lm, "sly")
    own_server.bank.publish(type(task)(**{**vars(task), "verbalizer": {label: (" yes",), "plain": (" no",)}}))
    visitor = visit().open(own_server.url)
    visitor.tab("Classify")
    visitor.choose("labellers", "sly")
    visitor.page.locator("#sample textarea").fill("anything")
    visitor.page.locator("#label").click()
    expect(visitor.page.locator("#probabilities")).to_contain_text(label)
    expect(visitor.page).to_have_title("Foreword")


def test_chinese_by_the_browsers_language_and_by_the_switch(visit: Callable[..., Visitor], server: RunningServer):
    visitor = visit(locale="zh-CN").open(server.url)
    page = visitor.page
    expect(page.get_by_role("button", name="提问")).to_be_visible()
    expect(page.get_by_role("tab", name="分类")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh"
    cards = visitor.ask("你好", BASE, "poet")
    expect(cards.first).to_contain_text("首 token")
    visitor.screenshot("playground-chinese")
    page.get_by_role("radio", name="English").check()
    expect(page.get_by_role("button", name="Ask")).to_be_visible()
    expect(cards.first).to_contain_text("first token")
    expect(cards.first).not_to_contain_text("首 token", use_inner_text=True)
    page.reload()
    expect(page.get_by_role("button", name="Ask")).to_be_visible()


def test_by_keyboard_alone(visit: Callable[..., Visitor], server: RunningServer):
    visitor = visit().open(server.url)
    page = visitor.page
    box = page.locator("#question textarea")
    for _ in range(30):
        page.keyboard.press("Tab")
        if box.evaluate("box => box === document.activeElement"):
            break
    expect(box).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(box).to_have_value("one\ntwo")
    expect(page.locator("#answers .card")).to_have_count(0)
    page.keyboard.press("Control+Enter")
    expect(visitor.finished_answers().first.locator(".figures")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#ask")).to_be_focused()
    page.keyboard.press("Enter")
    visitor.finished_answers()


def test_a_phone(visit: Callable[..., Visitor], server: RunningServer):
    from server.ui.browser import PHONE

    visitor = visit(viewport=PHONE, has_touch=True, is_mobile=True).open(server.url)
    cards = visitor.ask("Hello", BASE, "poet")
    upper, lower = cards.nth(0).bounding_box(), cards.nth(1).bounding_box()
    assert upper is not None
    assert lower is not None
    assert lower["y"] >= upper["y"] + upper["height"]
    for name in ("Playground", "Classify", "Tasks"):
        visitor.tab(name)
        assert visitor.page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
        visitor.screenshot(f"{name.lower()}-phone")


def test_a_key_reaches_as_far_as_anywhere_else(visit: Callable[..., Visitor], server: RunningServer):
    boss = ApiKey(name="boss", sha256=digest_of("fw-boss"), admin=True)
    keys = ApiKeys([boss, ApiKey(name="guest", sha256=digest_of("fw-guest"), tasks=["po*"])])
    app = create_app(server.engine, server.bank, authenticator=Authenticator(keys), ui=True)
    with serve_in_background(app) as url:
        assert httpx.get(f"{url}/ui/").status_code == 401
        guest = visit(http_credentials={"username": "", "password": "fw-guest"}).open(url)
        assert guest.page.locator("#models .token").all_inner_texts() == ["poet"]
        expect(guest.ask("Hello").first.locator(".text")).to_be_visible()
        guest.tab("Tasks")
        guest.page.locator("#rollback").click()
        expect(guest.page.locator("#done").get_by_role("alert")).to_contain_text(
            "the key 'guest' is no administrator's"
        )
        boss = visit(http_credentials={"username": "", "password": "fw-boss"}).open(url)
        assert BASE in boss.page.locator("#models .token").all_inner_texts()


def test_a_server_without_a_bank(visit: Callable[..., Visitor], server: RunningServer):
    app = create_app(server.engine, None, extra_tasks={"story": server.bank.load("story")}, ui=True)
    with serve_in_background(app) as url:
        visitor = visit().open(url)
        expect(visitor.ask("Hello", BASE, "story").nth(1).locator(".text")).to_be_visible()
        visitor.tab("Tasks")
        expect(visitor.page.locator("#tasks").get_by_role("alert")).to_contain_text("this server has no bank")


def test_no_other_site_asks_through_the_page(server: RunningServer):
    path = f"{server.url}/ui/gradio_api/queue/join"
    assert httpx.post(path, json={}, headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert httpx.post(path, json={}, headers={"Origin": server.url}).status_code == 422


def test_only_the_doors_that_the_page_needs(server: RunningServer):
    for path in ("upload", "file=/etc/passwd", "proxy=http://x.hf.space/", "runs", "monitoring"):
        assert httpx.get(f"{server.url}/ui/gradio_api/{path}").status_code == 404
    assert httpx.post(f"{server.url}/ui/gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert "/ui" not in httpx.get(f"{server.url}/openapi.json").json()["paths"]
