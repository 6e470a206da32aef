"""Requests that can never run, or may not wait, are refused and counted before any work is done for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from foreword.bank.bank import Bank
from foreword.bank.names import suggest
from foreword.engine.engine import Engine
from foreword.errors import RequestError
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.api_keys import ApiKey, ApiKeys, digest_of
from foreword.server.operations.auth import Authenticator
from foreword.server.operations.json_body import read_body
from foreword.text import chat, seam
from server.running_server import chat_model, label_task, learned_task, static_task, wait_until

BODY_CPU = 0.5
"""Seconds of a processor that a refusal may take on a busy machine; without the bound each of these takes many."""


@dataclass(frozen=True, eq=False)
class LimitedServer:
    url: str
    engine: Engine
    authenticator: Authenticator

    def post(self, path: str, body: dict[str, Any], key: str = "ann") -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}/v1/{path}", json=body, headers=headers, timeout=60)

    def limiter(self, key: str) -> Any:
        return self.authenticator._limiters[digest_of(key)]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitedServer]:
    lm, bank = chat_model(), Bank(tmp_path_factory.mktemp("bank"))
    bank.publish(learned_task(lm, "a-poet"))
    bank.publish(label_task(lm, "a-mood"))
    bank.publish(static_task(lm, "b-secret-merger", "prompt", "The merger is on Monday."))
    patterns = {"ann": ["a-*", lm.name], "refused": ["*"], "many": ["*"], "quota": ["*"], "poor": ["*"]}
    limits = {
        "refused": {"requests_per_minute": 3},
        "many": {"requests_per_minute": 5},
        "quota": {"tokens_per_day": 100},
        "poor": {"tokens_per_day": 40},
    }
    keys = [ApiKey(name=k, sha256=digest_of(k), tasks=tasks, **limits.get(k, {})) for k, tasks in patterns.items()]
    authenticator = Authenticator(ApiKeys(keys))
    with Engine(lm, cache_bytes=1 << 23) as engine:
        app = create_app(engine, bank, authenticator=authenticator, max_waiting=64)
        with serve_in_background(app) as url:
            yield LimitedServer(url, engine, authenticator)


LONG = "hello world " * 40_000
MANY = [{"role": "user", "content": "a"}] * 3000
DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP, "hello world " * 400]
TOOL = {"type": "function", "function": {"name": "f", "description": LONG}}
HOSTILE = [
    ("completions", {"prompt": ["a"] * 20_000, "n": 128}, "invalid_request"),
    ("completions", {"prompt": ["a"] * 33, "n": 2}, "invalid_request"),
    ("completions", {"prompt": [[1]] * 65}, "invalid_request"),
    ("completions", {"prompt": LONG}, "context_length_exceeded"),
    ("completions", {"prompt": [1] * 100_000}, "context_length_exceeded"),
    ("completions", {"prompt": LONG, "echo": True, "logprobs": 1, "max_tokens": 0}, "context_length_exceeded"),
    ("completions", {"inputs": {"text": DEEP}}, "context_length_exceeded"),
    ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "context_length_exceeded"),
    ("chat/completions", {"messages": MANY}, "context_length_exceeded"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]},
        "context_length_exceeded",
    ),
    ("chat/completions", {"messages": MANY[:1], "tools": [TOOL]}, "context_length_exceeded"),
    ("chat/completions", {"messages": MANY[:1], "chat_template_kwargs": {"a": DEEP}}, "context_length_exceeded"),
    ("chat/completions", {"messages": MANY[:1], "n": 65}, "invalid_request"),
    ("responses", {"input": LONG}, "context_length_exceeded"),
    ("responses", {"input": MANY}, "context_length_exceeded"),
    ("embeddings", {"input": LONG}, "context_length_exceeded"),
    ("embeddings", {"input": ["a"] * 20_000}, "invalid_request"),
    ("classify", {"model": "a-mood", "input": ["a"] * 20_000}, "invalid_request"),
    ("classify", {"model": "a-mood", "input": {"text": LONG}}, "context_length_exceeded"),
    ("tag", {"model": "a-mood", "input": [["a"] * 20_000]}, "context_length_exceeded"),
    ("tokenize", {"prompt": LONG}, "context_length_exceeded"),
    ("tokenize", {"messages": MANY}, "context_length_exceeded"),
]


@pytest.mark.parametrize(("path", "body", "code"), HOSTILE, ids=[f"{i}-{each[0]}" for i, each in enumerate(HOSTILE)])
def test_nothing_is_tokenized_for_what_can_never_run(limited, monkeypatch, path, body, code):
    def fail(*_: object, **__: object) -> Any:
        raise AssertionError("work was done")

    monkeypatch.setattr(seam, "encode", fail)
    monkeypatch.setattr(chat._ChatTemplate, "render", fail)
    began = time.process_time()
    response = limited.post(path, {"model": "tiny-llama", **body})
    assert time.process_time() - began < BODY_CPU
    assert (response.status_code, response.json()["error"]["code"]) == (400, code), response.text


def test_a_full_queue_refuses_at_once(limited, monkeypatch):
    monkeypatch.setattr(limited.engine, "statistics", lambda: {"waiting": 60})
    refused = limited.post("completions", {"model": "tiny-llama", "prompt": ["a"] * 5})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "engine_busy")
    assert limited.post("completions", {"model": "tiny-llama", "prompt": ["a"] * 4}).status_code == 200


def test_refused_requests_and_wrong_names_are_counted(limited):
    assert limited.post("completions", {"model": "tiny-llama", "prompt": LONG}, "refused").status_code == 400
    assert limited.post("completions", {"model": "wrong", "prompt": "a"}, "refused").status_code == 404
    assert limited.post("completions", {"model": ["no name"]}, "refused").status_code == 400
    assert limited.post("completions", {"model": "tiny-llama", "prompt": "a"}, "refused").status_code == 429
    assert httpx.get(f"{limited.url}/v1/models", headers={"x-api-key": "refused"}).status_code == 429
    assert httpx.get(f"{limited.url}/health").status_code == 200


def test_prompts_and_n_count_as_requests(limited):
    body = {"model": "tiny-llama", "prompt": ["a", "b"], "n": 2, "max_tokens": 1}
    assert limited.post("completions", body, "many").status_code == 200
    refused = limited.post("classify", {"model": "a-mood", "input": ["a", "b"]}, "many")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_a_quota_is_reserved_and_what_was_not_used_is_given_back(limited):
    limiter = limited.limiter("quota")
    too_much = limited.post("completions", {"model": "tiny-llama", "prompt": "abc", "max_tokens": 98}, "quota")
    assert (too_much.status_code, limiter.used, limiter.reserved) == (429, 0, 0)
    body = {"model": "tiny-llama", "prompt": "abc", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    headers = {"Authorization": "Bearer quota"}
    with httpx.stream("POST", f"{limited.url}/v1/completions", json=body | {"stream": True}, headers=headers) as stream:
        lines = stream.iter_lines()  # kept: without it the stream is closed
        next(lines)
        assert limiter.reserved + limiter.used == 63
        assert limited.post("completions", body, "quota").status_code == 429
    wait_until(lambda: limiter.reserved == 0)
    assert 3 < limiter.used <= 63
    wrong = limited.post("completions", body | {"prompt": [[1], [9999]], "max_tokens": 5}, "quota")
    assert (wrong.status_code, limiter.reserved) == (400, 0)  # refused by the engine when half was submitted


def test_an_echo_with_logprobs_is_charged_before_it_runs(limited, monkeypatch):
    run: list[object] = []
    measure = limited.engine.prompt_logprobs
    monkeypatch.setattr(limited.engine, "prompt_logprobs", lambda *a, **k: run.append(a) or measure(*a, **k))
    body = {"model": "tiny-llama", "prompt": "abcdefgh", "echo": True, "logprobs": 1, "max_tokens": 1}
    limiter = limited.limiter("poor")
    assert limited.post("completions", body | {"prompt": ["abcdefgh"] * 5}, "poor").status_code == 429
    assert not run
    answered = limited.post("completions", body, "poor")
    assert len(run) == 1
    assert (limiter.used, limiter.reserved) == (answered.json()["usage"]["total_tokens"], 0)

    def fail(*_: object, **__: object) -> Any:
        raise RequestError("the answer cannot begin.")

    before = limiter.used
    monkeypatch.setattr(limited.engine, "submit", fail)
    assert limited.post("completions", body, "poor").status_code == 400
    assert (limiter.used, limiter.reserved) == (before + 8, 0)


def test_near_names_are_those_that_the_key_reaches(limited):
    for ask in (
        lambda name: limited.post("completions", {"model": name, "prompt": "a"}),
        lambda name: httpx.get(f"{limited.url}/v1/models/{name}", headers={"x-api-key": "ann"}),
        lambda name: httpx.get(f"{limited.url}/v1/tasks/{name}", headers={"x-api-key": "ann"}),
    ):
        for name in ("a-secret-merger", "a-zzz"):
            assert ask(name).status_code == 404
            assert "b-" not in ask(name).text
        assert "did you mean a-poet" in ask("a-poe").text
        assert ask("b-secret-merger").text == ask("b-not-there").text.replace("b-not-there", "b-secret-merger")
    shown = httpx.get(f"{limited.url}/v1/models", headers={"x-api-key": "ann"}).text
    assert "a-poet" in shown
    assert "b-" not in shown
    assert limited.post("completions", {"model": "a" * 10_000, "prompt": "a"}).status_code == 400


def test_a_wrong_name_costs_little_among_many(monkeypatch):
    names = [f"a-{number:05d}-abcabcabc" for number in range(5000)]
    began = time.process_time()
    for number in range(10):
        suggest("a-" + "abcdefgh"[number % 8] * 3 + "bcadefgh-bcad" * 3, names, "list")
    assert time.process_time() - began < 1.0  # of all 5,000 each takes a second
    assert suggest("a-00031-abcabcabd", names, "list").startswith("did you mean a-00031-abcabcabc")
    assert "b-00031-abcabcabc" in suggest("x-00031-abcabcabc", [*names, "b-00031-abcabcabc"], "list")
    assert suggest("a" * 1_000_000, names, "list") == "`list` lists what is there."


@pytest.mark.parametrize("part", ["[],", "{},", "0,"])
def test_bodies_of_too_many_parts_are_not_read(part):
    with pytest.raises(RequestError, match="send less at once"):
        read_body(('{"a": [' + part * (3 << 19) + "0]}").encode())
    text = {"text": part * (1 << 20) + '\\"'}
    assert read_body(json.dumps(text).encode()) == text
