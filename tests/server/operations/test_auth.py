"""API keys over HTTP: authentication, access to tasks, rate limits and quotas; and the file of keys."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
from typer.testing import CliRunner

from foreword.bank.bank import Bank
from foreword.cli.app import app as command
from foreword.engine.engine import Engine
from foreword.errors import LimitReached, UsageError
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.api_keys import ApiKey, ApiKeys, digest_of, read_keys
from foreword.server.operations.auth import Authenticator
from foreword.server.operations.rate_limits import RateLimiter
from server.running_server import RunningServer, chat_model, publish_all

ADMIN, POETS, SLOW = "fw-admin", "fw-poets", "fw-slow"


def key(name: str, secret: str, **more: object) -> ApiKey:
    return ApiKey(name=name, sha256=digest_of(secret), **more)  # type: ignore[arg-type]


def api_keys() -> ApiKeys:
    return ApiKeys(
        [
            key("boss", ADMIN, admin=True),
            key("poets", POETS, tasks=["po*", "stor?"]),
            key("slow", SLOW, requests_per_minute=2),
        ]
    )


@contextmanager
def secured_server(folder: Path, authenticator: Authenticator, **options: object) -> Iterator[RunningServer]:
    lm, bank = chat_model(), Bank(folder)
    publish_all(bank, lm)
    app_of = partial(create_app, bank=bank, authenticator=authenticator, **options)  # type: ignore[arg-type]
    with Engine(lm, cache_bytes=1 << 22) as engine, serve_in_background(app_of(engine)) as url:
        yield RunningServer(url, lm, engine, bank)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with secured_server(tmp_path_factory.mktemp("bank"), Authenticator(api_keys())) as server:
        yield server


def client(server: RunningServer, secret: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)


@pytest.mark.parametrize(
    "path", ["/ready", "/metrics", "/docs", "/openapi.json", "/v1/models", "/v1/tasks", "/v1/tasks/poet", "/nothing"]
)
def test_every_path_needs_a_key_but_health(secured, path):
    for headers in ({}, {"Authorization": "Bearer fw-other"}, {"Authorization": "Basic !"}, {"Authorization": "x"}):
        response = httpx.get(secured.url + path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert "Bearer" in response.headers["www-authenticate"]
    assert httpx.get(secured.url + "/health").status_code == 200


@pytest.mark.parametrize(
    "used", ["", "[", "[1]", '{"a": 1}', '{"a": {"day": 3, "used": 1}}', '{"a": {"used": "x"}}', "[" * 9999]
)
def test_a_damaged_file_of_usage_is_forgotten_and_said(tmp_path, caplog, used):
    file = tmp_path / "keys.jsonl.used"
    file.write_text(used)
    key = ApiKey(name="a", sha256=digest_of("a"), tokens_per_day=5)
    Authenticator(ApiKeys([key]), file).save_usage()
    assert "quotas begin at 0" in caplog.text
    assert json.loads(file.read_text())["a"]["used"] == 0


def test_a_post_without_a_key_is_refused_before_it_is_read(secured):
    response = httpx.post(f"{secured.url}/v1/chat/completions", content=b"{")
    assert response.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {POETS}"},
        {"Authorization": f"bearer {POETS}"},
        {"Authorization": "Basic " + base64.b64encode(f"anybody:{POETS}".encode()).decode()},
        {"api-key": POETS},
        {"x-api-key": POETS},
    ],
)
def test_a_key_is_shown_in_any_of_the_usual_ways(secured, headers):
    assert httpx.get(f"{secured.url}/v1/models", headers=headers).status_code == 200


def test_a_key_sees_and_asks_only_what_it_reaches(secured):
    with client(secured, POETS) as poets, client(secured, ADMIN) as boss:
        assert {model.id for model in poets.models.list()} == {"poet", "story"}
        assert {model.id for model in boss.models.list()} >= {secured.lm.name, "poet", "kind", "mood"}
        assert poets.completions.create(model="poet", prompt="a", max_tokens=2).choices[0].text
        for name in ("kind", "nothing", secured.lm.name):
            with pytest.raises(openai.PermissionDeniedError, match="does not reach"):
                poets.completions.create(model=name, prompt="a", max_tokens=2)
        with pytest.raises(openai.PermissionDeniedError):
            poets.models.retrieve("kind")
    headers = {"Authorization": f"Bearer {POETS}"}
    for path, body in (
        ("completions", {"task_id": "kind", "prompt": "a"}),
        ("classify", {"model": "mood", "input": "a"}),
        ("tokenize", {"model": "kind", "prompt": "a"}),
    ):
        assert httpx.post(f"{secured.url}/v1/{path}", json=body, headers=headers).status_code == 403
    shown = httpx.get(f"{secured.url}/v1/tasks", headers=headers).json()["data"]
    assert {task["name"] for task in shown} == {"poet", "story"}


def test_only_an_administrator_changes_tasks_and_reads_metrics(secured):
    poets, boss = ({"Authorization": f"Bearer {secret}"} for secret in (POETS, ADMIN))
    for method, path in (
        ("POST", "/v1/tasks"),
        ("DELETE", "/v1/tasks/poet"),
        ("POST", "/v1/tasks/poet/rollback"),
        ("POST", "/v1/tasks/poet/pin"),
        ("POST", "/v1/tasks/poet/unpin"),
        ("POST", "/v1/tasks/poet/warm"),
        ("GET", "/metrics"),
    ):
        assert httpx.request(method, secured.url + path, headers=poets).status_code == 403
    assert httpx.get(f"{secured.url}/metrics", headers=boss).status_code == 200


def test_requests_a_minute(secured):
    with client(secured, SLOW) as slow:
        for _ in range(2):
            slow.completions.create(model="poet", prompt="a", max_tokens=1)
        with pytest.raises(openai.RateLimitError, match="2 requests a minute") as error:
            slow.completions.create(model="poet", prompt="a", max_tokens=1)
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 30
    assert error.value.code == "rate_limit_exceeded"


def test_tokens_of_prompts_answers_and_cancelled_streams_are_counted(tmp_path):
    limited = ApiKeys([key("small", POETS, tokens_per_minute=40, tokens_per_day=60)])
    usage_file = tmp_path / "used"
    with (
        secured_server(tmp_path / "bank", Authenticator(limited, usage_file)) as server,
        client(server, POETS) as small,
    ):
        used = small.completions.create(model="poet", prompt="abcdefgh", max_tokens=40).usage
        assert used is not None
        assert used.total_tokens > 40
        with pytest.raises(openai.RateLimitError, match="40 tokens a minute"):
            small.completions.create(model="poet", prompt="a", max_tokens=1)
        headers = {"Authorization": f"Bearer {POETS}"}
        refused = httpx.post(f"{server.url}/v1/classify", json={"model": "mood", "input": "a"}, headers=headers)
        assert refused.status_code == 429
    assert json.loads(usage_file.read_text())["small"]["used"] == used.total_tokens


def test_a_quota_outlives_the_server_and_ends_with_the_day(tmp_path):
    today = datetime.now(UTC).date()
    usage_file = tmp_path / "used"
    limited_key = key("small", POETS, tokens_per_day=10)
    usage_file.write_text(json.dumps({"small": {"day": today.isoformat(), "used": 10}}))
    with (
        secured_server(tmp_path / "bank", Authenticator(ApiKeys([limited_key]), usage_file)) as server,
        client(server, POETS) as small,
    ):
        with pytest.raises(openai.RateLimitError, match="10 tokens of today") as error:
            small.completions.create(model="poet", prompt="a", max_tokens=1)
        assert 0 < int(error.value.response.headers["retry-after"]) <= 86_400
    now = datetime.now(UTC)
    clock = [now]
    limiter = RateLimiter(limited_key, used=10, day=today.isoformat(), now=lambda: clock[0])
    with pytest.raises(LimitReached):
        limiter.check_tokens()
    clock[0] = now + timedelta(days=1)
    limiter.check_tokens()


def test_buckets_refill_steadily():
    clock = [0.0]
    limiter = RateLimiter(key("k", "s", requests_per_minute=6, tokens_per_minute=60), clock=lambda: clock[0])
    for _ in range(6):
        limiter.count_request()
    with pytest.raises(LimitReached) as error:
        limiter.count_request()
    assert error.value.retry_after == pytest.approx(10)
    clock[0] = 10.0
    limiter.count_request()
    clock[0] = 100.0
    limiter.count_tokens(180)
    with pytest.raises(LimitReached, match="60 tokens") as error:
        limiter.check_tokens()
    assert error.value.retry_after == pytest.approx(121)
    clock[0] = 222.0
    limiter.check_tokens()


def test_the_command_makes_keys_that_the_server_takes(tmp_path):
    file = tmp_path / "keys.jsonl"
    runner = CliRunner()
    made = runner.invoke(command, ["key", "shop", "--api-keys", str(file), "--task", "po*", "--json"])
    assert made.exit_code == 0, made.output
    secret = json.loads(made.stdout)["key"]
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert runner.invoke(command, ["key", "boss", "--api-keys", str(file), "--admin"]).exit_code == 0
    shop, boss = read_keys(file)
    assert ApiKeys([shop, boss]).find(secret) == shop
    assert (shop.tasks, shop.admin, boss.tasks, boss.admin) == (["po*"], False, ["*"], True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no key"),
        (["{"], "line 1"),
        (['{"name": "a", "sha256": "ab"}'], "line 1: sha256"),
        (['{"name": "a", "sha256": "' + "a" * 64 + '", "speed": 1}'], "line 1: speed"),
        (['{"name": "a", "sha256": "' + "a" * 64 + '"}', '{"name": "a", "sha256": "' + "b" * 64 + '"}'], "line 2"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_refused(lines, message, tmp_path):
    file = tmp_path / "keys"
    file.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=message):
        read_keys(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "none")
