"""Metrics, access log, request limits, timeouts, CORS, and many clients at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.access_log import LOGGER, AccessLog
from foreword.server.operations.metrics import MAX_TASK_LABELS, Metrics
from foreword.server.tasks.resident_tasks import ResidentTasks
from server.running_server import chat_model, wait_until

SECRET = "grandmother's maiden name"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


@contextmanager
def small_server(**options: object) -> Iterator[tuple[str, Engine]]:
    """A server without a bank."""
    limits = {name: options.pop(name) for name in ("max_waiting", "max_batch") if name in options}
    app_of = partial(create_app, bank=None, **options)  # type: ignore[arg-type]
    with Engine(chat_model(), cache_bytes=1 << 22, **limits) as engine, serve_in_background(app_of(engine)) as url:  # type: ignore[arg-type]
        yield url, engine


@pytest.fixture
def log_lines() -> Iterator[list[dict]]:
    lines: list[dict] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(record.getMessage()))

    handler = Recorder()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield lines
    LOGGER.removeHandler(handler)


def test_metrics_count_what_was_asked(server, client):
    before = samples(httpx.get(f"{server.url}/metrics").text)
    answer = client.completions.create(model="poet", prompt="abc", max_tokens=7)
    list(client.completions.create(model="poet", prompt="abc", max_tokens=5, stream=True))
    client.completions.create(model="poet", prompt=["abc", "abd"], max_tokens=3, n=2)
    httpx.post(f"{server.url}/v1/classify", json={"model": "mood", "input": ["a", "b"]}).raise_for_status()
    assert httpx.get(f"{server.url}/nothing/here").status_code == 404
    text = httpx.get(f"{server.url}/metrics").text
    after = samples(text)

    def increase(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    prompt = answer.usage.prompt_tokens
    assert increase("foreword_answer_tokens_total", "poet") == 7 + 5 + 4 * 3
    assert increase("foreword_prompt_tokens_total", "poet") == 4 * prompt
    assert increase("foreword_cached_tokens_total", "poet") >= 4 * 5
    assert increase("foreword_prompt_tokens_total", "mood") > 0
    assert increase("foreword_time_to_first_token_seconds_count", "poet") == 6
    assert increase("foreword_inter_token_seconds_count", "poet") == 6 + 4 + 4 * 2
    assert increase("foreword_answer_seconds_count", "poet") == 6
    assert increase("foreword_responses_total", "/v1/completions", "200") == 3
    assert increase("foreword_responses_total", "unknown", "404") == 1
    assert after["foreword_engine_requests_total",] >= 6
    assert after["foreword_prefix_bytes",] > 0
    assert after["foreword_prefix_loads_total",] >= 1
    assert after["foreword_engine_running",] == 0


def test_tasks_do_not_multiply_the_metrics():
    metrics = Metrics(dict, ResidentTasks())
    for number in range(3 * MAX_TASK_LABELS):
        metrics.count_tokens(f"task-{number}", 1, 0, 1)
    found = samples(metrics.exposition().decode())
    counted = [key for key in found if key[0] == "foreword_answer_tokens_total"]
    assert len(counted) == MAX_TASK_LABELS + 1
    assert found["foreword_answer_tokens_total", "other"] == 2 * MAX_TASK_LABELS


def test_the_access_log_has_requests_and_not_their_text(server, client, log_lines):
    response = client.chat.completions.with_raw_response.create(
        model="poet",
        messages=[{"role": "user", "content": SECRET}],
        max_tokens=4,
        extra_headers={"X-Request-ID": "order-66"},
    )
    assert response.headers["x-request-id"] == "order-66"
    other = httpx.get(f"{server.url}/v1/models/none{SECRET}", headers={"X-Request-ID": "bad id!"})
    assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])
    wait_until(lambda: len(log_lines) >= 2)
    line = next(each for each in log_lines if each["request_id"] == "order-66")
    assert line["method"] == "POST"
    assert line["path"] == "/v1/chat/completions"
    assert line["status"] == 200
    assert line["model"].startswith("poet@")
    assert line["answer_tokens"] == 4
    assert line["prompt_tokens"] > 10
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize(
    ("path", "status", "logged"),
    [
        ("/ui/", 200, True),
        ("/ui/assets/index.js", 200, False),
        ("/ui/gradio_api/queue/data", 200, False),
        ("/favicon.ico", 304, False),
        ("/ui/assets/gone.js", 404, True),
        ("/ui/gradio_api/queue/join", 0, True),
        ("/v1/models", 200, True),
    ],
)
def test_the_access_log_leaves_out_the_parts_of_the_page(path, status, logged, log_lines):
    async def app(scope, receive, send) -> None:
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})

    async def ignore(*_) -> dict:
        return {}

    log = AccessLog(app, Metrics(dict, ResidentTasks()), parts_of_page=("/ui/", "/favicon.ico"))
    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    asyncio.run(log(scope, ignore, ignore))
    assert [line["path"] for line in log_lines] == [path] * logged


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/tasks"])
def test_a_body_that_is_too_large_is_refused(chunked, path):
    with small_server(max_body_bytes=2000) as (url, _):
        body = b'{"prompt": "' + b"a" * 3000 + b'"}'
        content = iter([body[:1000], body[1000:]]) if chunked else body
        response = httpx.post(url + path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert httpx.get(f"{url}/health").status_code == 200


def test_json_is_bounded_apart_from_uploads():
    with small_server(max_json_bytes=2000) as (url, _):
        json_type, long = {"Content-Type": "application/json"}, b'{"a": "' + b"a" * 3000 + b'"}'
        for content in (long, iter([long])):
            refused = httpx.post(f"{url}/v1/tasks", content=content, headers=json_type)
            assert refused.status_code == 413
        upload = httpx.post(f"{url}/v1/tasks", files={"prefix": b"a" * 3000})
        assert "this server has no bank" in upload.json()["error"]["message"]
        address = urlsplit(url)
        for length, status in ((b"0" * 5000 + b"47", b"400"), (b"9" * 19, b"400"), (b"9" * 17, b"413")):
            with socket.create_connection((address.hostname, address.port)) as connection:
                head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                connection.sendall(head + b"Content-Length: " + length + b"\r\n\r\n" + b"{" * 47)
                assert connection.recv(100).startswith(b"HTTP/1.1 " + status)  # at once: the body need not come


def test_a_body_that_trickles_is_given_up():
    with small_server(timeout_body=1.0) as (url, _):
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 500\r\n\r\n")
            connection.settimeout(0.2)
            received, deadline = b"", time.monotonic() + 10
            while not received and time.monotonic() < deadline:
                connection.sendall(b"{")
                with contextlib.suppress(TimeoutError):
                    received = connection.recv(100)
            assert received.startswith(b"HTTP/1.1 408")


def test_a_body_that_never_comes_is_given_up(monkeypatch):
    monkeypatch.setattr("foreword.server.operations.request_limits.PART_TIMEOUT", 0.3)
    with small_server() as (url, _):
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 500\r\n\r\n{")
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_an_answer_that_takes_too_long_is_ended():
    with small_server(timeout=0.05) as (url, engine):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            options = {"model": engine.name, "prompt": "abc", "max_tokens": 240, "extra_body": {"ignore_eos": True}}
            with pytest.raises(openai.InternalServerError, match=r"more than the 0\.05 s") as error:
                client.completions.create(**options)
            assert error.value.status_code == 504
            with pytest.raises(openai.APIError, match=r"more than the 0\.05 s"):
                list(client.completions.create(**options, stream=True))
        wait_until(lambda: engine.statistics()["running"] == 0)


def test_too_many_requests_are_refused_at_once():
    with small_server(max_waiting=2, max_batch=1) as (url, engine):

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                body = {"model": engine.name, "prompt": "abc", "max_tokens": 150, "ignore_eos": True}
                return await asyncio.gather(*(client.post(f"{url}/v1/completions", json=body) for _ in range(12)))

        responses = asyncio.run(crowd())
        refused = [each for each in responses if each.status_code == 429]
        assert 1 <= len(refused) <= 10
        assert {each.status_code for each in responses} == {200, 429}
        assert all(each.headers["retry-after"] == "1" for each in refused)


def test_other_pages_ask_only_where_they_are_named(server):
    headers = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.get(f"{server.url}/health", headers=headers).headers
    with small_server(cors_origins=["https://shop.example"]) as (url, _):
        allowed = httpx.options(f"{url}/v1/completions", headers=headers)
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        other = httpx.get(f"{url}/health", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_64_clients_at_once(server):
    """Every stream is right, and when half of the clients disconnect the engine is idle within a second."""
    names = ["poet", "story", server.lm.name, "kind"]
    chats = {name: name == "kind" for name in names}

    async def ask(client: openai.AsyncOpenAI, index: int, disconnects: bool) -> str:
        name = names[index % len(names)]
        text = f"client {index}: "
        more = {"max_tokens": 120 if disconnects else 20, "temperature": 0, "extra_body": {"ignore_eos": True}}
        if chats[name]:
            messages = [{"role": "user", "content": text}]
            stream = await client.chat.completions.create(model=name, messages=messages, stream=True, **more)
        else:
            stream = await client.completions.create(model=name, prompt=text, stream=True, **more)
        parts = []
        async with stream:
            async for event in stream:
                choice = event.choices[0]
                parts.append(choice.delta.content or "" if chats[name] else choice.text)
                if disconnects and len(parts) > 3:
                    return ""
        return "".join(parts)

    async def crowd(disconnecting: int) -> list[str]:
        async with server.async_client() as client:
            return await asyncio.gather(*(ask(client, index, index < disconnecting) for index in range(64)))

    alone = asyncio.run(crowd(0))
    assert len(set(alone)) > 32
    together = asyncio.run(crowd(32))
    left = time.monotonic()
    wait_until(lambda: server.engine.statistics()["running"] == 0)
    assert time.monotonic() - left < 1.0
    assert together[32:] == alone[32:]
    statistics = server.engine.statistics()
    assert statistics["waiting"] == 0
    server.engine.cache.check()
