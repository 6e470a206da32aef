"""``langchain-openai``: tools bound to a model, and structured output in every mode."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_openai", reason="needs the clients: make test-clients")

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from on_clients.conftest import MODEL, TASK


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"{len(city)} degrees"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def told(city: str, degrees: int, call_id: str) -> list[Any]:
    call = {"name": "get_weather", "args": {"city": city}, "id": call_id}
    return [
        HumanMessage(f"What is the weather in {city}?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage(f"{degrees} degrees", tool_call_id=call_id),
        AIMessage(f"It is {degrees} degrees in {city}."),
    ]


CONVERSATION = [*told("Rome", 18, "call_1"), *told("Oslo", 3, "call_2"), HumanMessage("What is the weather in Paris?")]


@pytest.fixture(params=[MODEL, TASK])
def model(request: pytest.FixtureRequest, url: str) -> ChatOpenAI:
    return ChatOpenAI(model=request.param, temperature=0, max_tokens=80, max_retries=0)


def test_a_loop_of_tools(model: ChatOpenAI) -> None:
    bound = model.bind_tools([get_weather])
    answer = bound.invoke(CONVERSATION)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", {"city": "Paris"})]
    result = get_weather.invoke(answer.tool_calls[0])
    assert "5 degrees" in bound.invoke([*CONVERSATION, answer, result]).content


def test_streamed_calls(model: ChatOpenAI) -> None:
    joined: Any = None
    for chunk in model.bind_tools([get_weather]).stream(CONVERSATION):
        joined = chunk if joined is None else joined + chunk
    assert [(call["name"], call["args"]) for call in joined.tool_calls] == [("get_weather", {"city": "Paris"})]


@pytest.mark.parametrize("choice", ["any", "get_weather", "required", True])
def test_forced_calls(model: ChatOpenAI, choice: Any) -> None:
    answer = model.bind_tools([get_weather], tool_choice=choice).invoke("What is the weather in Berlin?")
    assert {call["name"] for call in answer.tool_calls} == {"get_weather"}


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_structured_output(model: ChatOpenAI, method: Any, strict: bool | None) -> None:
    if method == "json_mode":
        if strict:
            pytest.skip("json_mode has no schema to be strict about")
        chain = model.with_structured_output(None, method=method)
        assert isinstance(chain.invoke('Ann is 30 years old. Answer as JSON: {"name": "Ann", "age": 30}'), dict)
        return
    found = model.with_structured_output(Person, method=method, strict=strict).invoke("Ann is 30 years old.")
    assert isinstance(found, Person)
    assert (found.name, found.age) == ("Ann", 30)
