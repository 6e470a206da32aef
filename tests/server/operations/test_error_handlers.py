"""Errors over HTTP: OpenAI's shape, one sentence, and the field by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
import pytest

from foreword.core import SamplingParams
from foreword.engine.protocol import Chunk, Request
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import RunningServer

HELLO: Any = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    prompt = {"messages": HELLO} if path == CHAT else {"prompt": "Hi"}
    return httpx.post(server.url + path, json={"model": "tiny-llama", "max_tokens": 2, **prompt, **body})


def check(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    """The message of an error in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith((".", "?"))
    assert "\n" not in error["message"]
    return error["message"]


UNSUPPORTED = [
    (CHAT, "prediction", {"type": "content"}),
    (CHAT, "reasoning_effort", "low"),
    (CHAT, "use_beam_search", True),
    (TEXT, "best_of", 2),
    (TEXT, "suffix", "end"),
    (TEXT, "use_beam_search", True),
    (TEXT, "prompt_logprobs", 1),
    (TEXT, "typical_p", 0.1),
    (TEXT, "messages", []),
]


@pytest.mark.parametrize(("path", "option", "value"), UNSUPPORTED)
def test_unsupported_options_are_refused_by_name(server: RunningServer, path: str, option: str, value: object) -> None:
    message = check(post(server, path, **{option: value}), 400, "unsupported_parameter", option)
    assert message.startswith(f"{option} is not supported")


def test_openai_names_the_option(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="poet", messages=HELLO, reasoning_effort="low")
    assert (caught.value.param, caught.value.code) == ("reasoning_effort", "unsupported_parameter")


def test_options_that_change_nothing_are_accepted(server: RunningServer) -> None:
    shared: dict[str, Any] = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "stop": None,
        "top_k": -1,
        "stream": False,
    }
    chat = {
        "logprobs": False,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "store": True,
    }
    text = {"logprobs": None, "echo": False, "best_of": 1, "suffix": None}
    assert post(server, CHAT, **shared, **chat).status_code == 200
    assert post(server, TEXT, **shared, **text).status_code == 200


WRONG = [
    (CHAT, "temperature", -1),
    (CHAT, "temperature", "hot"),
    (CHAT, "max_tokens", 0),
    (CHAT, "top_p", 0),
    (CHAT, "messages", []),
    (CHAT, "messages", "Hello"),
    (CHAT, "seed", 2**70),
    (TEXT, "seed", 1.5),
    (TEXT, "top_k", -2),
    (TEXT, "stop", [""]),
    (TEXT, "stop", ["x"] * 17),
    (TEXT, "stop", 5),
    (TEXT, "prompt", []),
    (TEXT, "prompt", ["a", 5]),
    (TEXT, "prompt", 5),
    (TEXT, "ignore_eos", "yes"),
    (TEXT, "stop_token_ids", ["x"]),
    (TEXT, "n", 0),
    (TEXT, "min_p", 1.5),
    (TEXT, "logprobs", 21),
    (TEXT, "logit_bias", {"five": 1}),
    (TEXT, "logit_bias", {"5": 101}),
    (TEXT, "repetition_penalty", 0),
    (CHAT, "presence_penalty", 3),
    (CHAT, "logprobs", 2),
]


@pytest.mark.parametrize(("path", "option", "value"), WRONG)
def test_wrong_values_are_named(server: RunningServer, path: str, option: str, value: object) -> None:
    answer = post(server, path, **{option: value})
    param = answer.json()["error"]["param"]
    assert param.split("[")[0] == option
    message = check(answer, 400, "invalid_value", param)
    assert message.startswith(param)


def test_contradictions_are_refused(server: RunningServer) -> None:
    assert "differ" in check(post(server, CHAT, max_completion_tokens=5), 400, "invalid_value", None)
    assert "inputs" in check(post(server, TEXT, inputs={"a": "b"}), 400, "invalid_value", None)
    assert "inputs" in check(post(server, TEXT, prompt=None), 400, "invalid_value", None)
    options = {"include_usage": True}
    assert "stream" in check(post(server, TEXT, stream_options=options), 400, "invalid_value", None)


def test_bodies_that_are_no_objects(server: RunningServer) -> None:
    url = server.url + TEXT
    json_header = {"content-type": "application/json"}
    check(httpx.post(url, content="{", headers=json_header), 400, "invalid_json", None)
    check(httpx.post(url, content="{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type", None)
    check(httpx.post(url), 400, "invalid_value", None)
    check(httpx.post(url, json=[1]), 400, "invalid_value", None)
    deep = "[" * 100_000 + "]" * 100_000
    assert httpx.post(url, content=deep, headers=json_header).status_code == 400
    check(httpx.post(url, json={"model": "x"}), 400, "invalid_value", None)
    check(httpx.post(server.url + CHAT, json={"model": "x"}), 400, "invalid_value", "messages")
    nan = '{"model": "tiny-llama", "prompt": "x", "temperature": NaN}'
    check(httpx.post(url, content=nan, headers=json_header), 400, "invalid_value", "temperature")


def test_prompts_that_are_too_long(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="poet", prompt="x" * 300, stream=stream)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="ask for at most"):
        client.completions.create(model="poet", prompt="x" * 200, max_tokens=100)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="poet", prompt=["fine", "x" * 300])


def test_prompts_that_cannot_run(server: RunningServer) -> None:
    for prompt in ("", [[5000]], [-1]):
        check(post(server, TEXT, prompt=prompt), 400, "invalid_request", None)
    for kind in ("image_url", "input_audio", "file"):
        parts = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": kind, kind: {}}]}]
        check(post(server, CHAT, messages=parts), 400, "unsupported_parameter", None)


def test_half_a_surrogate_pair(server: RunningServer) -> None:
    def ask(model: str, prompt: str) -> httpx.Response:
        body = f'{{"model": "{model}", "prompt": "{prompt}"}}'
        return httpx.post(server.url + TEXT, content=body, headers={"content-type": "application/json"})

    check(ask("tiny-llama", r"\ud800"), 400, "invalid_request", None)
    check(ask(r"\ud800", "Hi"), 400, "invalid_request", None)


def test_routes_that_are_not(server: RunningServer) -> None:
    check(httpx.get(f"{server.url}/v2/models"), 404, "not_found", None)
    check(httpx.get(f"{server.url}/v1"), 404, "not_found", None)
    check(httpx.get(f"{server.url}/v1/models/"), 404, "model_not_found", "model")
    wrong = httpx.get(server.url + TEXT)
    check(wrong, 405, "method_not_allowed", None)
    assert wrong.headers["allow"] == "POST"


def test_probes(server: RunningServer) -> None:
    health = httpx.get(f"{server.url}/health").json()
    assert (health["status"], health["engine"]) == ("ok", "embedded")
    assert {"foreword", "torch", "transformers"} <= set(health["versions"])
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready", "model": "tiny-llama"}
    schema = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert "greedy" in schema["ChatRequest"]["properties"]["temperature"]["description"]


class BrokenStream:
    """One chunk of text, and then ``ending``."""

    cached_tokens = 0

    def __init__(self, request: Request, ending: Sequence[Chunk | Exception]) -> None:
        self.request = request
        self._ending = ending

    def cancel(self) -> None:
        pass

    def __iter__(self) -> Iterator[Chunk]:
        raise NotImplementedError

    async def __aiter__(self):
        yield Chunk("some text", (1,))
        for chunk in self._ending:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class BrokenEngine:
    """The server's engine, but with streams that break in the middle."""

    def __init__(self, server: RunningServer, *ending: Chunk | Exception) -> None:
        engine = server.engine
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.identity, self.context = engine.identity, engine.context
        self.score, self.statistics, self.close = engine.score, engine.statistics, engine.close
        self._ending = ending
        self.alive, self.loads_prefixes, self.causal = True, engine.loads_prefixes, engine.causal
        self.is_encoder_decoder = False

    def submit(self, request: Request) -> BrokenStream:
        assert request.sampling != SamplingParams()
        return BrokenStream(request, self._ending)


BREAKS = [
    (Chunk("", (), "error", "the engine failed."), 503, "the engine failed."),
    (Chunk("", (), "cancelled"), 503, "stopped before"),
    (RuntimeError("secret /path"), 500, "unexpected error"),
]


@pytest.mark.parametrize(("ending", "status", "sentence"), BREAKS)
def test_engines_that_break(
    server: RunningServer, ending: Chunk | Exception, status: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve_in_background(create_app(BrokenEngine(server, ending), server.bank)) as url:
        body = {"model": "poet", "messages": HELLO}
        whole = httpx.post(url + CHAT, json=body)
        assert whole.status_code == status
        assert sentence in whole.json()["error"]["message"]
        assert "secret" not in whole.text
        streamed = httpx.post(url + CHAT, json=body | {"stream": True})
        assert streamed.status_code == 200
        last = streamed.text.strip().split("\n\n")[-1]
        assert last.startswith('event: error\ndata: {"error": {"message": ')
        assert sentence in last
        assert "secret" not in streamed.text
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="poet", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError, match=sentence):
                list(stream)


def test_the_application_needs_no_torch() -> None:
    code = "import sys, foreword.server.app; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
