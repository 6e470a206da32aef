"""Tasks that expire and tasks with two versions, over HTTP."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from foreword.bank.bank import Bank
from foreword.bank.time_to_live import parse_time
from foreword.engine.engine import Engine
from foreword.server import app
from foreword.server.background import serve_in_background
from server.operations.test_metrics_and_limits import samples
from server.running_server import chat_model, label_task, learned_task, wait_until

WEEK = 7 * 86400


class Server:
    """A server whose bank's clock can be moved on."""

    def __init__(self, root: Path) -> None:
        self.ahead = 0.0
        self.bank = Bank(root, clock=lambda: time.time() + self.ahead)
        self.lm = chat_model()
        self.http: httpx.Client

    def ask(self, model: str, **more: object) -> httpx.Response:
        body = {"model": model, "prompt": "Hi", "max_tokens": 2, "temperature": 0, **more}
        return self.http.post("/v1/completions", json=body)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(app, "PRUNE_INTERVAL", 0.2)
    made = Server(tmp_path / "bank")
    with (
        Engine(made.lm, cache_bytes=1 << 22) as engine,
        serve_in_background(app.create_app(engine, made.bank)) as url,
        httpx.Client(base_url=url) as http,
    ):
        made.http = http
        yield made


def test_a_task_with_a_time_to_live_expires_and_is_pruned(server: Server) -> None:
    server.bank.publish(replace(learned_task(server.lm, "short"), ttl=WEEK))
    server.bank.publish(learned_task(server.lm, "long"))
    # A version that never expires keeps its task in the bank.
    server.bank.publish(learned_task(server.lm, "both"))
    server.bank.publish(replace(learned_task(server.lm, "both"), ttl=WEEK))
    shown = server.http.get("/v1/tasks/short").json()
    assert (shown["ttl"], shown["expired"]) == (WEEK, False)
    assert parse_time(shown["expires"]) == pytest.approx(time.time() + WEEK * 1.05, abs=30)
    assert server.http.get("/v1/tasks/long").json()["expires"] is None
    assert server.ask("short").status_code == server.ask("both").status_code == 200
    server.ahead = 0.9 * WEEK
    assert server.ask("short").status_code == 200
    server.ahead = 1.8 * WEEK  # used in between
    assert server.ask("short").status_code == 200
    answer = server.ask("both")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_expired", "model")
    assert "lives 1w without being used" in error["message"]
    assert server.http.get("/v1/models/both").status_code == 404
    models = [each["id"] for each in server.http.get("/v1/models").json()["data"]]
    assert models == ["tiny-llama", "long", "short"]
    assert server.http.get("/v1/tasks/both").json()["expired"] is True
    server.ahead = 4 * WEEK
    wait_until(lambda: server.bank.names() == ["both", "long"])
    assert server.http.post("/v1/tasks/both/rollback").json()["expired"] is False
    assert server.ask("both").status_code == 200


def test_pinned_tasks_are_not_pruned(server: Server) -> None:
    server.bank.publish(replace(learned_task(server.lm, "pinned"), ttl=WEEK))
    server.bank.publish(replace(learned_task(server.lm, "other"), ttl=WEEK))
    server.http.post("/v1/tasks/pinned/pin").raise_for_status()
    server.ahead = 2 * WEEK
    wait_until(lambda: server.bank.names() == ["pinned"])


@pytest.mark.parametrize(("ttl", "seconds"), [("7d", WEEK), (90, 90), (None, None)])
def test_a_task_is_published_with_a_time_to_live(server: Server, ttl: object, seconds: int | None) -> None:
    response = server.http.post("/v1/tasks", json={"name": "kind", "system": "Be kind.", "ttl": ttl})
    assert response.status_code == 201
    assert response.json()["ttl"] == seconds == server.bank.describe("kind").get("ttl")


@pytest.mark.parametrize("ttl", ["soon", 0, -1, 1.5, "0d"])
def test_a_wrong_time_to_live_is_refused(server: Server, ttl: object) -> None:
    response = server.http.post("/v1/tasks", json={"name": "kind", "system": "Be kind.", "ttl": ttl})
    assert response.status_code == 400
    assert "ttl must be a number of seconds above 0, or a text such as 7d" in response.json()["error"]["message"]


def test_an_upload_with_a_time_to_live(server: Server) -> None:
    ref = server.bank.publish(learned_task(server.lm, "source")).ref
    name, _, version = ref.partition("@")
    file = Path(server.bank.location, name, "versions", version, "prefix.safetensors").read_bytes()
    response = server.http.post("/v1/tasks", data={"name": "up", "ttl": "2h"}, files={"prefix": file})
    assert response.json()["ttl"] == 7200


def test_two_versions_answer_side_by_side(server: Server) -> None:
    first = server.bank.publish(learned_task(server.lm, "poet", seed=1)).version
    second = server.bank.publish(learned_task(server.lm, "poet", seed=2)).version
    server.bank.set_split("poet", {first: 0.5, second: 0.5})

    def version(model: str = "poet", **more: object) -> str:
        fingerprint: str = server.ask(model, **more).json()["system_fingerprint"]
        return fingerprint.partition("@")[2]

    users = {f"user-{number}": version(user=f"user-{number}") for number in range(40)}
    assert min(Counter(users.values()).values()) >= 8
    assert set(users.values()) == {first, second}
    assert all(version(user=user) == users[user] for user in list(users)[:10])
    assert all(version(safety_identifier=user) == users[user] for user in list(users)[:10])
    assert {version() for _ in range(30)} == {first, second}
    assert version(f"poet@{second}") == second
    assert server.http.get("/v1/tasks/poet").json()["split"] == {second: 0.5, first: 0.5}
    found = samples(server.http.get("/metrics").text)
    counted = {each: found["foreword_version_responses_total", "200", "poet", each] for each in (first, second)}
    assert sum(counted.values()) >= 90
    assert min(counted.values()) > 20
    for each in (first, second):
        assert found["foreword_version_answer_tokens_total", "poet", each] >= counted[each]
        assert found["foreword_version_time_to_first_token_seconds_count", "poet", each] >= counted[each]
    assert found["foreword_answer_seconds_count", "poet"] >= 90
    server.bank.publish(learned_task(server.lm, "poet", seed=3))
    assert len({version() for _ in range(10)}) == 1
    assert server.http.get("/v1/tasks/poet").json()["split"] is None


def test_the_current_version_of_a_split_is_pinned(server: Server) -> None:
    versions = [server.bank.publish(learned_task(server.lm, "poet", seed=seed)).version for seed in range(2)]
    server.bank.set_split("poet", {versions[0]: 0.9, versions[1]: 0.1})
    for _ in range(8):
        shown = server.http.post("/v1/tasks/poet/pin").json()
        assert (shown["version"], shown["resident"]) == (versions[0], True)
    assert server.http.get(f"/v1/tasks/poet@{versions[1]}").json()["resident"] is False


def test_every_route_follows_the_split(server: Server) -> None:
    first = server.bank.publish(label_task(server.lm)).version
    second = server.bank.publish(replace(label_task(server.lm), verbalizer={"up": (" yes",), "down": (" no",)})).version
    server.bank.set_split("mood", {first: 0.5, second: 0.5})
    labels: Counter[str] = Counter()
    for number in range(40):
        body = {"model": "mood", "input": "fine", "user": str(number)}
        (row,) = server.http.post("/v1/classify", json=body).json()["data"]
        labels[json.dumps(sorted(row["probs"]))] += 1
        server.http.post("/v1/embeddings", json=body).raise_for_status()
    assert len(labels) == 2
    found = samples(server.http.get("/metrics").text)
    assert sum(found["foreword_version_responses_total", "200", "mood", each] for each in (first, second)) == 80


def test_tasks_without_a_split_have_no_metrics_by_version(server: Server) -> None:
    server.bank.publish(learned_task(server.lm, "poet"))
    server.ask("poet").raise_for_status()
    assert "foreword_version_responses_total{" not in server.http.get("/metrics").text
