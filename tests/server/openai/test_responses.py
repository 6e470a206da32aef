"""``/v1/responses`` through OpenAI's own client: whole, streamed, parsed, with tools, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import embedding_create_params
from openai.types.responses import ResponseFunctionToolCall, response_create_params
from pydantic import BaseModel

from foreword.server.openai.embeddings import EmbeddingRequest
from foreword.server.openai.response_schema import ResponseRequest
from server.openai.test_tools import roomy_model, running
from server.running_server import RunningServer

GREEDY: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12}
PAINT: Any = {
    "type": "function",
    "name": "paint",
    "description": "Paint something.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
NAMED: Any = {"type": "function", "name": "paint"}


class Mood(BaseModel):
    mood: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(roomy_model(), tmp_path_factory.mktemp("bank")) as found:
        yield found


def post(server: RunningServer, **body: Any) -> httpx.Response:
    sent = {"model": "tiny-llama", "input": "Hello", "max_output_tokens": 2, **body}
    return httpx.post(f"{server.url}/v1/responses", json=sent, timeout=60)


def chat_text(client: openai.OpenAI, model: str, messages: Any) -> str | None:
    options: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
    return client.chat.completions.create(**options).choices[0].message.content


@pytest.mark.parametrize("model", ["tiny-llama", "poet", "kind", "story"])
def test_a_text_is_answered_as_over_chat(client: openai.OpenAI, server: RunningServer, model: str) -> None:
    response = client.responses.create(model=model, input="Hello", **GREEDY)
    assert response.output_text == chat_text(client, model, [{"role": "user", "content": "Hello"}])
    assert response.id.startswith("resp_")
    assert (response.object, response.model, response.temperature) == ("response", model, 0)
    assert response.usage is not None
    cached = response.usage.input_tokens_details.cached_tokens
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert cached >= (5 if model == "poet" else 0)
    assert (response.model_extra or {})["store"] is False
    assert (response.model_extra or {})["system_fingerprint"].partition("@")[0] == model


def test_the_label_of_a_task_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.create(model="mood", input="fine")
    assert response.output_text in ("yes", "no")
    assert response.status == "completed"


def test_instructions_and_items_are_a_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(model="poet", input="One", **GREEDY)
    items: Any = [
        {"role": "user", "content": "One"},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Two"}]},
    ]
    response = client.responses.create(model="poet", instructions="Be kind.", input=items, **GREEDY)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Two"},
    ]
    assert response.output_text == chat_text(client, "poet", messages)
    assert response.instructions == "Be kind."


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="poet", input="Hello", max_output_tokens=3, extra_body={"ignore_eos": True, "seed": 3}
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 3
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_events_of_a_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {**GREEDY, "extra_body": {"structured_outputs": {"regex": "[a-z]{20}"}}}
    whole = client.responses.create(model="poet", input="Hello", **options)
    events = list(client.responses.create(model="poet", input="Hello", stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[4:-4] == ["response.output_text.delta"] * len(deltas)
    end = "response.completed" if whole.status == "completed" else "response.incomplete"
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        end,
    ]
    assert len(deltas) > 1
    last: Any = events[-1]
    assert "".join(deltas) == events[-4].text == last.response.output_text == whole.output_text  # type: ignore[union-attr]
    assert last.response.usage.output_tokens == whole.usage.output_tokens  # type: ignore[union-attr]


def test_the_clients_own_stream_and_its_final_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny-llama", input="Hello", text_format=Mood, max_output_tokens=60) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
    assert isinstance(final.output_parsed, Mood)


def test_parse(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="tiny-llama", input="Hello", text_format=Mood, max_output_tokens=60)
    assert isinstance(response.output_parsed, Mood)
    schema: Any = {"format": {"type": "json_object"}}
    plain = client.responses.create(model="tiny-llama", input="Hi", text=schema, max_output_tokens=400, temperature=0)
    assert plain.output_text.startswith("{")


def test_logprobs(client: openai.OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    options: dict[str, Any] = {"model": "poet", "input": "Hello", "include": include, "top_logprobs": 2, **GREEDY}
    response = client.responses.create(**options)
    (part,) = response.output[0].content  # type: ignore[union-attr]
    assert len(part.logprobs) == 12  # type: ignore[union-attr,arg-type]
    assert all(len(each.top_logprobs) == 2 and each.bytes is not None for each in part.logprobs)  # type: ignore[union-attr]
    streamed = [
        entry.logprob
        for event in client.responses.create(**options, stream=True)
        if event.type == "response.output_text.delta"
        for entry in event.logprobs
    ]
    assert streamed == pytest.approx([each.logprob for each in part.logprobs], abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["tiny-llama", "poet", "kind"])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_calls_of_tools(client: openai.OpenAI, model: str, choice: Any) -> None:
    options: dict[str, Any] = {"model": model, "input": "Paint it", "tools": [PAINT], "tool_choice": choice}
    options |= {"max_output_tokens": 120, "temperature": 1, "parallel_tool_calls": False}
    options["extra_body"] = {"seed": 4}
    response = client.responses.create(**options)
    (call,) = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.status, response.output_text) == ("paint", "completed", "")
    assert json.loads(call.arguments)["colour"] in ("red", "blue")
    events: list[Any] = list(client.responses.create(**options, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert kinds[2] == "response.output_item.added"
    assert events[2].item.name == "paint"
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(deltas) == events[-3].arguments == call.arguments
    assert events[-1].response.output[0].arguments == call.arguments
    assert "response.output_text.delta" not in kinds
    again: Any = [
        {"role": "user", "content": "Paint it"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "done"},
    ]
    answer = client.responses.create(**{**options, "input": again, "tool_choice": "none"}, timeout=60)
    assert answer.output[0].type == "message"
    assert answer.usage is not None
    assert response.usage is not None
    assert answer.usage.input_tokens > 30


def test_history_of_calls_is_that_of_chat() -> None:
    from foreword.server.openai.response_items import to_messages

    call = {"type": "function_call", "call_id": "a", "name": "paint", "arguments": "{}"}
    items: Any = [
        {"role": "user", "content": "Go"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Well", "annotations": []}],
        },
        call,
        {**call, "call_id": "b"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        {**call, "call_id": "c"},
    ]
    messages = to_messages(items, None)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [each["id"] for each in messages[1]["tool_calls"]] == ["a", "b"]
    assert [each["id"] for each in messages[4]["tool_calls"]] == ["c"]
    assert messages[3] == {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "2"}]}


@pytest.mark.parametrize(
    ("params", "schema"),
    [
        (response_create_params.ResponseCreateParamsBase, ResponseRequest),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
    ],
    ids=["responses", "embeddings"],
)
def test_every_parameter_of_openai_is_known_and_may_be_null(server: RunningServer, params: Any, schema: Any) -> None:
    names = set(params.__annotations__) | ({"stream"} if schema is ResponseRequest else set())
    assert names <= set(schema.model_fields)
    path = "responses" if schema is ResponseRequest else "embeddings"
    for name in sorted(names - {"model", "input"}):
        sent = {"model": "tiny-llama", "input": "Hi", name: None}
        answer = httpx.post(f"{server.url}/v1/{path}", json=sent, timeout=60)
        assert answer.status_code == 200, answer.text


def test_what_is_not_built_is_refused_with_a_reason(server: RunningServer) -> None:
    refused = [
        name
        for name, field in ResponseRequest.model_fields.items()
        if any(type(each).__name__ == "AfterValidator" for each in field.metadata) and field.annotation is Any
    ]
    assert {"previous_response_id", "conversation", "background", "prompt"} <= set(refused)
    for name in refused:
        error = post(server, **{name: {"something": "else"}}).json()["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert error["message"].startswith(f"{name} is not supported: ")


@pytest.mark.parametrize(
    "options",
    [
        {"store": True},
        {"store": False},
        {"background": False},
        {"include": ["reasoning.encrypted_content"]},
        {"metadata": {"a": "b"}},
        {"reasoning": {"effort": "none", "summary": "auto"}},
        {"truncation": "auto"},
        {"truncation": "disabled"},
        {"max_tool_calls": 3},
        {"service_tier": "auto"},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"tools": [], "tool_choice": "auto"},
        {"stream_options": {"include_obfuscation": False}, "stream": True},
        {"prompt_cache_options": {"mode": "implicit"}},
        {"safety_identifier": "me", "prompt_cache_key": "a", "user": "b"},
    ],
)
def test_options_that_change_nothing(server: RunningServer, options: dict[str, Any]) -> None:
    answer = post(server, **options)
    assert answer.status_code == 200, answer.text
    if not options.get("stream"):
        assert answer.json()["metadata"] == options.get("metadata", {})
        assert answer.json()["store"] is False


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported: nothing is stored here"),
        ({"background": True}, "background is not supported: a response is given while the client waits"),
        ({"include": ["file_search_call.results"]}, "include[0] must be"),
        ({"tools": [{"type": "web_search"}]}, "tools of type 'web_search' run at OpenAI and not here"),
        ({"tools": [PAINT], "tool_choice": {"type": "function", "name": "fly"}}, "fly"),
        ({"reasoning": {"effort": "high"}}, "reasoning_effort is not supported"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary is not supported"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]: references are not supported"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]: items of type 'reasoning' are not supported"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]: parts of type 'input_image' are not supported",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            "input[0].content[0]: parts of type 'input_file' are not supported",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": [{"type": "input_image"}]}]},
            "input[0].output[0]: parts of type 'input_image' are not supported",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id must be a text"),
        ({"input": []}, "input must be a text, or a list"),
        ({"temperature": -1}, "temperature must be greater than or equal to 0"),
        ({"input": "x" * 5000, "truncation": "auto"}, "truncation: auto leaves nothing out here"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "must hold schema"),
        ({"best": 1}, "best is not supported"),
        ({"n": 2}, "n is not supported"),
    ],
)
def test_what_is_refused(server: RunningServer, options: dict[str, Any], sentence: str) -> None:
    response = post(server, **options)
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


def test_a_failure_in_a_stream_is_an_error_event(tmp_path: Path) -> None:
    from foreword.errors import EngineError
    from foreword.server.openai.response_writer import ResponseWriter
    from foreword.server.operations.error_handlers import error_body

    writer = ResponseWriter({"id": "resp_1"}, None, None)
    event = writer.error(error_body(EngineError("it broke."))["error"])
    assert (event["type"], event["message"], event["error"]["message"]) == ("error", "it broke.", "it broke.")
