"""Sampling options, log-probabilities and constraints through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from server.running_server import RunningServer

HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_several_answers(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "prompt": ["Hi", "Ho"], "temperature": 1, "max_tokens": 6}
    many = client.completions.create(**options, n=3, seed=5)
    assert [choice.index for choice in many.choices] == list(range(6))
    for index in range(3):
        single = client.completions.create(**options, seed=5 + index)
        assert [choice.text for choice in single.choices] == [many.choices[index].text, many.choices[3 + index].text]
        assert single.usage
        assert many.usage
        assert single.usage.prompt_tokens == many.usage.prompt_tokens


@pytest.mark.parametrize("model", ["tiny-llama", "poet"])
def test_logprobs_of_chat(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 6, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    for entry in whole.content:
        assert entry.token == entry.top_logprobs[0].token
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob < 0
    chunks = client.chat.completions.create(**options, logprobs=True, top_logprobs=2, stream=True)
    found = [chunk.choices[0].logprobs for chunk in chunks]
    streamed = [entry for logprobs in found if logprobs is not None for entry in logprobs.content or []]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.content]


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "prompt": "Hi", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**options).choices[0].logprobs
    assert whole is not None
    lists = [whole.tokens, whole.token_logprobs, whole.top_logprobs, whole.text_offset]
    assert len({len(each or []) for each in lists}) == 1
    assert whole.tokens
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    offsets = [offset for part in parts if part is not None for offset in part.text_offset or []]
    assert offsets == whole.text_offset


def test_json(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model="poet", messages=HELLO, response_format=form, temperature=1.5, max_tokens=40
    )
    assert json.loads(answer.choices[0].message.content or "").keys() == {"n"}
    assert answer.choices[0].finish_reason == "stop"
    form["json_schema"]["schema"] = {"type": "nope"}
    with pytest.raises(openai.BadRequestError, match="cannot be compiled"):
        client.chat.completions.create(model="poet", messages=HELLO, response_format=form, max_tokens=4)


@pytest.mark.parametrize("form", [{"regex": "[ab]{3}"}, {"choice": ["aaa", "bab"]}, {"json": SCHEMA}])
def test_structured_outputs(client: openai.OpenAI, form: dict[str, Any]) -> None:
    answer = client.completions.create(
        model="poet", prompt="Hi", max_tokens=40, temperature=1, extra_body={"structured_outputs": form}
    )
    text = answer.choices[0].text
    assert json.loads(text).keys() == {"n"} if "json" in form else len(text) == 3 and set(text) <= {"a", "b"}


def test_only_constraints_are_compiled_beside_the_event_loop(
    client: openai.OpenAI, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, in_event_loop = type(server.engine).submit, []

    def submit_and_record(engine: Any, request: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            in_event_loop.append(False)
        else:
            in_event_loop.append(True)
        return submit(engine, request)

    monkeypatch.setattr(type(server.engine), "submit", submit_and_record)
    for extra in ({}, {"structured_outputs": {"regex": "ab"}}):
        client.completions.create(model="poet", prompt="Hi", max_tokens=4, extra_body=extra)
    assert in_event_loop == [True, False]


def test_options_reach_the_engine(client: openai.OpenAI, server: RunningServer) -> None:
    options: dict[str, Any] = {"model": "poet", "prompt": "Hi", "temperature": 0, "max_tokens": 20}
    plain = client.completions.create(**options).choices[0].text
    biased = options | {"logit_bias": {"65": 20}}
    assert len(set(client.completions.create(**biased).choices[0].text)) == 1
    for more in (
        {"extra_body": {"repetition_penalty": 50.0}},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0, "logit_bias": {"65": 20, "66": 19}},
    ):
        assert len(set(client.completions.create(**(biased | more)).choices[0].text)) > 1
    cold = {"temperature": 2, "extra_body": {"min_p": 1.0}}
    assert client.completions.create(**(options | cold)).choices[0].text == plain
