"""A tool, and a conversation from which the small model learns how to call it."""

from __future__ import annotations

from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}


def question(city: str) -> dict[str, Any]:
    return {"role": "user", "content": f"What is the weather in {city}?"}


def call(city: str, call_id: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def result(degrees: int, call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": f"{degrees} degrees"}


def told(city: str, degrees: int, call_id: str) -> list[dict[str, Any]]:
    answer = {"role": "assistant", "content": f"It is {degrees} degrees in {city}."}
    return [question(city), call(city, call_id), result(degrees, call_id), answer]


EXAMPLES = [*told("Rome", 18, "call_aaaa1"), *told("Oslo", 3, "call_aaaa2")]
CONVERSATION = [*EXAMPLES, question("Paris")]
"""The model calls by itself here, greedily."""
ANSWERED = [*CONVERSATION, call("Paris", "call_aaaa3"), result(11, "call_aaaa3")]
