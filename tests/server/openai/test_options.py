"""Every option that clients send: honoured, taken at a value that changes nothing, or refused by name with a reason."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import openai
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from foreword.server.openai.schema import ChatRequest, CompletionRequest
from server.running_server import RunningServer

HELLO: Any = [{"role": "user", "content": "Hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
REQUIRED = {"model", "messages", "prompt"}


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    prompt = {"messages": HELLO} if path == CHAT else {"prompt": "Hi"}
    return httpx.post(server.url + path, json={"model": "tiny-llama", "max_tokens": 2, **prompt, **body}, timeout=60)


@pytest.mark.parametrize(
    ("path", "params", "schema"),
    [(CHAT, chat_params, ChatRequest), (TEXT, text_params, CompletionRequest)],
    ids=["chat", "text"],
)
def test_every_option_of_openai_is_known_and_may_be_null(
    server: RunningServer, path: str, params: Any, schema: Any
) -> None:
    names = set(params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert names <= set(schema.model_fields)
    for name in sorted(names - REQUIRED):
        answer = post(server, path, **{name: None})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "schema"), [(CHAT, ChatRequest), (TEXT, CompletionRequest)], ids=["chat", "text"])
def test_what_is_not_built_is_refused_with_a_reason(server: RunningServer, path: str, schema: Any) -> None:
    refused = [
        name
        for name, field in schema.model_fields.items()
        if any(type(each).__name__ == "AfterValidator" for each in field.metadata) and field.annotation is Any
    ]
    assert len(refused) > 15
    for name in refused:
        error = post(server, path, **{name: {"something": "else"}}).json()["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert error["message"].startswith(f"{name} is not supported: ")
        assert error["message"].endswith("; leave it out.")


NEUTRAL = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "guided_json": None,
    "length_penalty": 1,
    "early_stopping": False,
    "use_beam_search": False,
    "best_of": 1,
    "typical_p": 1.0,
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "seed": -1,
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "x",
    "metadata": {"a": "b"},
    "vllm_xargs": {},
}
NEUTRAL_IN_CHAT = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "none",
    "verbosity": "medium",
    "parallel_tool_calls": False,
    "modalities": ["text"],
    "tool_choice": "none",
    "tools": [],
    "functions": [],
    "documents": [],
}


@pytest.mark.parametrize(
    ("path", "options"),
    [(CHAT, NEUTRAL | NEUTRAL_IN_CHAT), (TEXT, NEUTRAL | {"suffix": "", "add_special_tokens": True})],
    ids=["chat", "text"],
)
def test_neutral_values_change_nothing(server: RunningServer, path: str, options: dict[str, Any]) -> None:
    plain = post(server, path, temperature=0)
    answer = post(server, path, temperature=0, **options)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain.json()["choices"]


def test_minus_one_is_no_seed(server: RunningServer) -> None:
    def text(seed: int | None) -> str:
        return post(server, TEXT, seed=seed, temperature=5, max_tokens=12).json()["choices"][0]["text"]

    assert text(3) == text(3)
    assert len({text(-1) for _ in range(4)}) > 1


def test_the_last_message_is_continued(server: RunningServer) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hel"}]
    options = {"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True}
    ids = post(server, CHAT, messages=messages, **options).json()["choices"][0]["prompt_token_ids"]
    assert server.lm.tokenizer.decode(ids).endswith("<|im_start|>assistant\nHel")
    error = post(server, CHAT, messages=messages, continue_final_message=True, add_generation_prompt=True).json()[
        "error"
    ]
    assert "send add_generation_prompt: false with it" in error["message"]


def test_variables_of_the_chat_template(server: RunningServer) -> None:
    template = server.lm.tokenizer.chat_template
    server.lm.tokenizer.chat_template = template + "{{ reasoning_effort }}{{ verbosity }}{{ colour }}"
    try:
        answer = post(server, CHAT, reasoning_effort="low", verbosity="high", chat_template_kwargs={"colour": "red"},
                      return_token_ids=True)  # fmt: skip
    finally:
        server.lm.tokenizer.chat_template = template
    assert server.lm.tokenizer.decode(answer.json()["choices"][0]["prompt_token_ids"]).endswith("lowhighred")
    assert "no variable for it" in post(server, CHAT, reasoning_effort="low").json()["error"]["message"]


def test_no_tokens_but_the_prompt(server: RunningServer, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "prompt": ["Hi there", "Ho"], "echo": True, "logprobs": 1}
    scored = client.completions.create(**options, max_tokens=0)
    full = client.completions.create(**options, max_tokens=1, temperature=0)
    assert [choice.text for choice in scored.choices] == ["Hi there", "Ho"]
    assert [choice.finish_reason for choice in scored.choices] == ["length", "length"]
    for short, long in zip(scored.choices, full.choices, strict=True):
        assert short.logprobs
        assert long.logprobs
        assert short.logprobs.token_logprobs == pytest.approx((long.logprobs.token_logprobs or [])[:-1], abs=1e-4)
    assert scored.usage
    assert (scored.usage.completion_tokens, scored.usage.total_tokens) == (0, scored.usage.prompt_tokens)
    streamed = client.completions.create(**options, max_tokens=0, stream=True)
    texts: Counter[int] = Counter()
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += len(choice.text)
    assert texts == {0: 8, 1: 2}
    assert "only for echo: true" in post(server, TEXT, max_tokens=0).json()["error"]["message"]


def test_stop_texts_may_stay(server: RunningServer) -> None:
    answer = post(server, TEXT, max_tokens=8, temperature=0).json()["choices"][0]["text"]
    stop = answer[2:4]
    options = {"max_tokens": 8, "temperature": 0, "stop": [stop]}
    short = post(server, TEXT, **options).json()["choices"][0]["text"]
    long = post(server, TEXT, **options, include_stop_str_in_output=True).json()["choices"][0]["text"]
    assert (short, long) == (answer[: answer.index(stop)], answer[: answer.index(stop) + len(stop)])


@pytest.mark.parametrize(
    "form",
    [{"guided_regex": "[ab]{3}"}, {"guided_choice": ["aba", "bab"]}, {"structured_outputs": {"regex": "[ab]{3}"}}],
)
def test_older_names_of_structured_outputs(server: RunningServer, form: dict[str, Any]) -> None:
    text = post(server, TEXT, **form, max_tokens=9).json()["choices"][0]["text"]
    assert len(text) == 3
    assert set(text) <= set("ab")
    error = post(server, TEXT, **form, guided_json={"type": "object"}).json()["error"]
    assert "both give a form" in error["message"]
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    assert post(server, TEXT, guided_json=schema, max_tokens=9).json()["choices"][0]["text"] == "{}"


def test_stream_options_in_full(server: RunningServer) -> None:
    options = {"include_usage": True, "include_obfuscation": True, "continuous_usage_stats": True}
    answer = post(server, CHAT, stream=True, stream_options=options)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    *deltas, last = events
    assert last["choices"] == []
    assert all(event["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for event in deltas)
    assert [event["usage"]["completion_tokens"] for event in deltas] == sorted(
        event["usage"]["completion_tokens"] for event in deltas
    )
    for event in deltas:
        written = json.dumps(event["choices"][0], separators=(",", ":"), ensure_ascii=False)
        assert (len(written.encode()) + len(event["obfuscation"])) % 64 == 0
    plain = post(server, CHAT, stream=True).text
    assert "obfuscation" not in plain
