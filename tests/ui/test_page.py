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
from server.running import House, label_task, learned_task, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright and Chromium")
expect = playwright.expect

if TYPE_CHECKING:
    from ui.browsing import Visitor

BASE = "tiny-llama"


def written(house: House, model: str, question: str, tokens: int = 128) -> str:
    """What the model answers over the API, in the words that a browser shows."""
    messages = [{"role": "user", "content": question}]
    with house.client() as client:
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, temperature=0)
    return answer.choices[0].message.content or ""


def seen(text: str) -> str:
    """Text without what a browser draws in its own way."""
    return "".join(character for character in text if character.isprintable() and not character.isspace())


def test_it_loads_from_this_server_alone(visitor: Visitor, house: House):
    expect(visitor.page).to_have_title("Foreword")
    expect(visitor.page.get_by_role("heading", name="Foreword")).to_be_visible()
    expect(visitor.page.get_by_text(BASE).first).to_be_visible()
    visitor.tab("Classify")
    visitor.tab("Tasks")
    visitor.page.wait_for_timeout(300)
    assert [url for url in visitor.requests if not url.startswith((house.url, "data:", "blob:"))] == []
    assert visitor.complaints == []


def test_the_server_tells_nobody(visit: Callable[..., Visitor], house: House):
    reached: list[object] = []
    listening = True

    def hear(event: str, args: tuple) -> None:
        if listening and event == "socket.connect" and isinstance(args[1], tuple):
            reached.append(args[1][0])

    sys.addaudithook(hear)
    with serve_in_background(create_app(house.engine, house.bank, ui=True)) as url:
        visit().open(url).ask("Hello", BASE)
    listening = False
    assert set(reached) <= {"127.0.0.1", "::1"}


def test_base_and_tasks_side_by_side(visitor: Visitor, house: House):
    asked = (BASE, "poet", "kind")
    cards = visitor.ask("Who are you?", *asked)
    for index, model in enumerate(asked):
        card = cards.nth(index)
        expect(card.get_by_role("heading")).to_contain_text(model)
        assert seen(card.locator(".text").inner_text()) == seen(written(house, model, "Who are you?"))
        expect(card.locator(".figures")).to_contain_text("first token")
        assert re.fullmatch(r"\d+ ms|\d+\.\d\d s", card.locator("dd").nth(0).inner_text())
        assert re.fullmatch(r"\d+ of \d+", card.locator("dd").nth(2).inner_text())
    assert float(cards.nth(1).locator("dd").nth(1).inner_text()) > 0
    expect(cards.nth(1).get_by_role("heading")).to_contain_text(house.bank.current("poet"))
    cached = int(cards.nth(1).locator("dd").nth(2).inner_text().split()[0])
    assert cached >= house.bank.load("poet").prefix.length
    visitor.keep("playground-desktop")


def test_switching_to_another_task(visitor: Visitor, house: House):
    visitor.ask("Hello", BASE, "poet")
    cards = visitor.ask("Hello", "story")
    expect(cards.first.get_by_role("heading")).to_contain_text("story")
    assert seen(cards.first.locator(".text").inner_text()) == seen(written(house, "story", "Hello"))


def test_stopping_frees_the_engine(visitor: Visitor, house: House):
    page = visitor.page
    page.locator("#settings button").click()
    page.get_by_label("number input for Longest answer, in tokens").fill("180")
    visitor.choose("models", BASE, "poet")
    page.locator("#question textarea").fill("Go")
    page.locator("#ask").click()
    expect(page.locator("#answers .card[aria-busy=true] .text").first).to_be_visible()
    page.locator("#stop").click()
    wait_until(lambda: house.engine.statistics()["running"] == 0, seconds=5)


def test_fields_of_a_template(visitor: Visitor, house: House):
    cards = visitor.ask('{"first": "one", "second": "two"}', "pair")
    with house.client() as client:
        fields = {"inputs": {"first": "one", "second": "two"}}
        answer = client.completions.create(model="pair", prompt=None, max_tokens=128, temperature=0, extra_body=fields)
    assert seen(cards.first.locator(".text").inner_text()) == seen(answer.choices[0].text)


def test_classifying(visitor: Visitor, house: House):
    visitor.tab("Classify")
    visitor.choose("labellers", "mood", "pair")
    visitor.page.locator("#sample textarea").fill("a fine day")
    visitor.page.locator("#sample textarea").press("Enter")
    cards = visitor.page.locator("#probabilities .card")
    expect(cards).to_have_count(2)
    asked = httpx.post(f"{house.url}/v1/classify", json={"model": "mood", "input": "a fine day"})
    probs = asked.json()["data"][0]["probs"]
    best = max(probs, key=probs.__getitem__)
    bars = cards.nth(0).locator("li")
    expect(bars).to_have_count(2)
    expect(bars.nth(0)).to_contain_text(best)
    expect(bars.nth(0)).to_contain_text(f"{probs[best]:.1%}")
    width = bars.nth(0).locator("i").evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
    assert width == pytest.approx(probs[best], abs=0.02)
    expect(cards.nth(1).get_by_role("alert")).to_contain_text("a text, and the template of task 'pair' has 2 fields")
    visitor.keep("classify-desktop")


@pytest.fixture
def own(house: House, tmp_path) -> Iterator[House]:
    """The same engine over a bank that a test may change."""
    bank = Bank(tmp_path)
    for seed in (1, 2):
        bank.publish(learned_task(house.lm, "poet", seed))
    with serve_in_background(create_app(house.engine, bank, ui=True)) as url:
        yield House(url, house.lm, house.engine, bank)


def test_rolling_back(visit: Callable[..., Visitor], own: House):
    visitor = visit().open(own.url)
    first, second = own.bank.versions("poet")
    expect(visitor.ask("Hello", "poet").first.get_by_role("heading")).to_contain_text(second)
    visitor.tab("Tasks")
    expect(visitor.page.locator("#tasks")).to_contain_text("p-tuning-v2")
    expect(visitor.page.locator("#versions tbody tr")).to_have_count(2)
    expect(visitor.page.locator("#versions tbody tr").first).to_contain_text("served")
    visitor.keep("tasks-desktop")
    visitor.page.locator("#rollback").click()
    expect(visitor.page.locator("#done").get_by_role("status")).to_contain_text(
        f"poet@{first} is served now.", use_inner_text=True
    )
    assert own.bank.current("poet") == first
    expect(visitor.page.locator("#versions tbody tr").nth(1)).to_contain_text("served")
    visitor.tab("Playground")
    expect(visitor.ask("Hello", "poet").first.get_by_role("heading")).to_contain_text(first)


def test_what_is_published_meanwhile_is_offered(visit: Callable[..., Visitor], own: House):
    visitor = visit().open(own.url)
    own.bank.publish(label_task(own.lm, "fresh"))
    visitor.tab("Tasks")
    visitor.page.locator("#refresh").click()
    expect(visitor.page.locator("#tasks")).to_contain_text("fresh")
    visitor.tab("Playground")
    visitor.choose("models", "fresh")


def test_errors_are_sentences(visit: Callable[..., Visitor], own: House):
    visitor = visit().open(own.url)
    visitor.page.locator("#ask").click()
    expect(visitor.page.get_by_role("alert")).to_have_text("Type something first.", use_inner_text=True)
    visitor.choose("models", BASE, "poet")
    own.bank.remove("poet")
    cards = visitor.ask("Hello")
    expect(cards.nth(1).get_by_role("alert")).to_contain_text("the model 'poet' does not exist")
    expect(cards.nth(0).locator(".text")).to_be_visible()
    visitor.keep("error-desktop")
    expect(visitor.ask("x" * 400).nth(0).get_by_role("alert")).to_be_visible()


def test_what_others_wrote_is_text(visit: Callable[..., Visitor], own: House):
    label = "<img src=x onerror=document.title='taken'>${1+1}{{value}}"
    task = label_task(own.lm, "sly")
    own.bank.publish(type(task)(**{**vars(task), "verbalizer": {label: (" yes",), "plain": (" no",)}}))
    visitor = visit().open(own.url)
    visitor.tab("Classify")
    visitor.choose("labellers", "sly")
    visitor.page.locator("#sample textarea").fill("anything")
    visitor.page.locator("#label").click()
    expect(visitor.page.locator("#probabilities")).to_contain_text(label)
    expect(visitor.page).to_have_title("Foreword")


def test_chinese_by_the_browsers_language_and_by_the_switch(visit: Callable[..., Visitor], house: House):
    visitor = visit(locale="zh-CN").open(house.url)
    page = visitor.page
    expect(page.get_by_role("button", name="提问")).to_be_visible()
    expect(page.get_by_role("tab", name="分类")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh"
    cards = visitor.ask("你好", BASE, "poet")
    expect(cards.first).to_contain_text("首 token")
    visitor.keep("playground-chinese")
    page.get_by_role("radio", name="English").check()
    expect(page.get_by_role("button", name="Ask")).to_be_visible()
    expect(cards.first).to_contain_text("first token")
    expect(cards.first).not_to_contain_text("首 token", use_inner_text=True)
    page.reload()
    expect(page.get_by_role("button", name="Ask")).to_be_visible()


def test_by_keyboard_alone(visit: Callable[..., Visitor], house: House):
    visitor = visit().open(house.url)
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
    expect(visitor.answered().first.locator(".figures")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#ask")).to_be_focused()
    page.keyboard.press("Enter")
    visitor.answered()


def test_a_phone(visit: Callable[..., Visitor], house: House):
    from ui.browsing import PHONE

    visitor = visit(viewport=PHONE, has_touch=True, is_mobile=True).open(house.url)
    cards = visitor.ask("Hello", BASE, "poet")
    upper, lower = cards.nth(0).bounding_box(), cards.nth(1).bounding_box()
    assert upper is not None
    assert lower is not None
    assert lower["y"] >= upper["y"] + upper["height"]
    for name in ("Playground", "Classify", "Tasks"):
        visitor.tab(name)
        assert visitor.page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
        visitor.keep(f"{name.lower()}-phone")


def test_a_key_reaches_as_far_as_anywhere_else(visit: Callable[..., Visitor], house: House):
    keys = [("boss", "fw-boss", ["*"], True), ("guest", "fw-guest", ["po*"], False)]
    ring = ApiKeys(ApiKey(name=n, sha256=digest_of(secret), tasks=t, admin=a) for n, secret, t, a in keys)
    app = create_app(house.engine, house.bank, authenticator=Authenticator(ring), ui=True)
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


def test_a_server_without_a_bank(visit: Callable[..., Visitor], house: House):
    app = create_app(house.engine, None, extra_tasks={"story": house.bank.load("story")}, ui=True)
    with serve_in_background(app) as url:
        visitor = visit().open(url)
        expect(visitor.ask("Hello", BASE, "story").nth(1).locator(".text")).to_be_visible()
        visitor.tab("Tasks")
        expect(visitor.page.locator("#tasks").get_by_role("alert")).to_contain_text("this server has no bank")


def test_no_other_site_asks_through_the_page(house: House):
    path = f"{house.url}/ui/gradio_api/queue/join"
    assert httpx.post(path, json={}, headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert httpx.post(path, json={}, headers={"Origin": house.url}).status_code == 422


def test_only_the_doors_that_the_page_needs(house: House):
    for path in ("upload", "file=/etc/passwd", "proxy=http://x.hf.space/", "runs", "monitoring"):
        assert httpx.get(f"{house.url}/ui/gradio_api/{path}").status_code == 404
    assert httpx.post(f"{house.url}/ui/gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert "/ui" not in httpx.get(f"{house.url}/openapi.json").json()["paths"]
