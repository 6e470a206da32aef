"""Every option of a request has bounds: beyond them a 400 that names it, never a 500."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from foreword.engine import grammar as grammars
from foreword.engine.grammar_trial import GrammarTrial
from server.running_server import RunningServer, wait_until

NINES = 10**300
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {"1" * 4301: 1}}, "logit_bias"),
    ({"logit_bias": {str(2**31): 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(16_385)}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"５": 1}}, "logit_bias"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ["a" * 9000, "b" * 9000]}, "stop"),
    ({"stop_token_ids": list(range(1025))}, "stop_token_ids"),
    ({"stop_token_ids": [2**31]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"max_tokens": NINES}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"min_tokens": 2**63}, "min_tokens"),
    ({"top_k": 2**63}, "top_k"),
    ({"top_k": -2}, "top_k"),
    ({"seed": 2**63}, "seed"),
    ({"seed": NINES}, "seed"),
    ({"temperature": 1e308}, "temperature"),
    ({"temperature": NINES}, "temperature"),
    ({"min_p": -0.1}, "min_p"),
    ({"presence_penalty": 1e9}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 2**40}, "n"),
    ({"best_of": 2**63}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"structured_outputs": {"regex": "a" * 9000}}, None),
    ({"structured_outputs": {"choice": ["a"] * 2 + ["\ud800"]}}, None),
    ({"structured_outputs": {"json": {"$ref": "#"}}}, None),
    ({"structured_outputs": {"json": "[" * 5000}}, None),
    ({"guided_json": {"const": "\ud800"}}, None),
]


@pytest.mark.parametrize(("options", "param"), WRONG, ids=[f"{next(iter(o))}-{i}" for i, (o, _) in enumerate(WRONG)])
def test_beyond_a_bound_is_400_by_name(server: RunningServer, options: dict[str, Any], param: str | None) -> None:
    body = {"model": "tiny-llama", "prompt": "Hi", "max_tokens": 2} | options
    for streamed in (False, True):
        data = json.dumps(body | {"stream": streamed})  # which writes half of a character in ASCII
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{server.url}/v1/completions", content=data, headers=headers, timeout=60)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert len(error["message"]) < 600
        assert param is None or param in f"{error['param']} {error['message']}"


def test_what_breaks_while_it_is_generated_is_the_clients_error(server: RunningServer, monkeypatch) -> None:
    monkeypatch.setattr(grammars, "FREE_SECONDS", -1.0)
    monkeypatch.setattr(grammars, "_first_error", lambda matcher: "")
    body = {"model": "tiny-llama", "prompt": "Hi", "max_tokens": 8, "guided_regex": "[a-f]{9,}"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    streamed = httpx.post(f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=60)
    assert streamed.status_code == 200
    event = json.loads(streamed.text.strip().rpartition("data: ")[2])
    assert (event["error"]["type"], event["error"]["code"]) == ("invalid_request_error", "invalid_request")


def test_a_constraint_whose_client_has_gone_is_not_compiled(server: RunningServer, monkeypatch) -> None:
    began, go_on, compiled = threading.Semaphore(0), threading.Event(), []

    def slow_error(self: GrammarTrial, grammar: str) -> str:
        compiled.append(grammar)
        began.release()
        go_on.wait(20)
        return ""

    monkeypatch.setattr(GrammarTrial, "error", slow_error)

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            def post(regex: str) -> asyncio.Task[httpx.Response]:
                body = {"model": "tiny-llama", "prompt": "Hi", "max_tokens": 2, "guided_regex": regex}
                return asyncio.create_task(client.post("/v1/completions", json=body))

            running = [post("first+"), post("second+")]
            for _ in running:
                assert await asyncio.to_thread(began.acquire, True, 20)
            waiting = [post(f"gone{i}+") for i in range(6)]
            await asyncio.sleep(0.3)
            free = await client.post("/v1/completions", json={"model": "tiny-llama", "prompt": "Hi", "max_tokens": 2})
            assert free.status_code == 200  # which no compilation keeps waiting
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.sleep(0.3)
            go_on.set()
            assert [(await task).status_code for task in running] == [200, 200]

    asyncio.run(ask())
    wait_until(lambda: not server.engine.statistics()["running"])
    assert len(compiled) == 2
