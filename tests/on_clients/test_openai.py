"""The package ``openai``: its tool loop, its parsers, streams and the async client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the clients: make test-clients")

import openai
from openai.lib.streaming.chat import ChunkEvent
from pydantic import BaseModel, ConfigDict

from on_clients.conftest import MODEL, TASK
from on_clients.weather import ANSWERED, CONVERSATION, NAMED, WEATHER, question


class GetWeather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")
    city: str


@pytest.fixture
def client() -> Any:
    return openai.OpenAI(max_retries=0)


@pytest.mark.parametrize("model", [MODEL, TASK])
def test_the_model_calls_by_itself_and_reads_the_result(client: Any, model: str) -> None:
    options: dict[str, Any] = {"model": model, "tools": [WEATHER], "temperature": 0, "max_tokens": 60}
    first = client.chat.completions.create(messages=CONVERSATION, **options).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    tool = {"role": "tool", "tool_call_id": call.id, "content": "11 degrees"}
    second = client.chat.completions.create(messages=[*CONVERSATION, first.message, tool], **options).choices[0]
    assert second.finish_reason == "stop"
    assert "11 degrees" in second.message.content


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("model", [MODEL, TASK])
def test_forced_calls(client: Any, model: str, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[question("Berlin")], tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}


def test_streamed_calls_are_the_whole_ones(client: Any) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": CONVERSATION, "tools": [WEATHER], "temperature": 0}
    whole = client.chat.completions.create(**options, max_tokens=60).choices[0].message.tool_calls[0].function
    with client.chat.completions.stream(**options, max_tokens=60) as stream:
        chunks = [event.chunk for event in stream if isinstance(event, ChunkEvent)]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == whole.arguments
    assert all(not (chunk.choices[0].delta.content or "").strip() for chunk in chunks if chunk.choices)


def test_a_strict_tool_is_called_by_itself(client: Any) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    answer = client.chat.completions.parse(
        model=MODEL, messages=CONVERSATION, tools=[strict], temperature=0, max_tokens=60
    )
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}


def test_parse_of_a_tool_and_of_a_response(client: Any) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    choice: Any = {"type": "function", "function": {"name": "GetWeather"}}
    options: dict[str, Any] = {"model": MODEL, "messages": [question("Berlin")], "max_tokens": 60, "temperature": 0}
    call = client.chat.completions.parse(**options, tools=tools, tool_choice=choice).choices[0].message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, GetWeather)
    parsed = client.chat.completions.parse(**options, response_format=GetWeather).choices[0].message.parsed
    assert isinstance(parsed, GetWeather)
    both = client.chat.completions.parse(**options, response_format=GetWeather, tools=tools).choices[0].message
    assert both.parsed is not None or both.tool_calls


def test_async(url: str) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(max_retries=0) as client:
            return await client.chat.completions.create(
                model=MODEL, messages=ANSWERED, tools=[WEATHER], temperature=0, max_tokens=30
            )

    assert "11 degrees" in asyncio.run(ask()).choices[0].message.content
