"""``litellm`` as a client of an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("litellm", reason="needs the clients: make test-clients")

import litellm

from on_clients.conftest import MODEL, TASK
from on_clients.weather import ANSWERED, CONVERSATION, NAMED, WEATHER, question


def complete(url: str, model: str, **options: Any) -> Any:
    return litellm.completion(
        model=f"openai/{model}", api_base=url, api_key="none", temperature=0, max_tokens=60, num_retries=0, **options
    )


@pytest.mark.parametrize("model", [MODEL, TASK])
def test_a_call_and_its_result(url: str, model: str) -> None:
    choice = complete(url, model, messages=CONVERSATION, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Paris"}
    assert "11 degrees" in complete(url, model, messages=ANSWERED, tools=[WEATHER]).choices[0].message.content


def test_streamed_and_forced(url: str) -> None:
    chunks = list(complete(url, MODEL, messages=[question("Berlin")], tools=[WEATHER], tool_choice=NAMED, stream=True))
    whole = litellm.stream_chunk_builder(chunks)
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}
    assert whole.choices[0].finish_reason == "tool_calls"
