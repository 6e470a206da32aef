"""Tools over ``/v1/chat/completions`` through OpenAI's own client, whole and streamed, behind every kind of task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from foreword.bank.bank import Bank
from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.models import LanguageModel
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text.tool_formats import HERMES
from server.running_server import RunningServer, chat_model, publish_all
from text.tool_templates import FAMILIES

HELLO: Any = [{"role": "user", "content": "Hello"}]
MODELS = ("tiny-llama", "poet", "kind", "story")
COLOUR: Any = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint something.",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"$ref": "#/$defs/Colour"}, "coats": {"type": "integer", "enum": [1, 2]}},
            "required": ["colour", "coats"],
            "additionalProperties": False,
            "$defs": {"Colour": {"type": "string", "enum": ["red", "blue"]}},
        },
    },
}
WAIT: Any = {"type": "function", "function": {"name": "wait"}}
TOOLS: Any = [COLOUR, WAIT]
NAMED: Any = {"type": "function", "function": {"name": "paint"}}


def roomy_model(template: str | None = None) -> LanguageModel:
    """The tiny model with room for tools: every byte of theirs is a token."""
    lm = dataclasses.replace(chat_model(), context=4096)
    lm.tokenizer.chat_template = template or lm.tokenizer.chat_template
    return lm


@contextmanager
def running(lm: LanguageModel, folder: Path) -> Iterator[RunningServer]:
    bank = Bank(folder)
    publish_all(bank, lm)
    with Engine(lm, cache_bytes=1 << 26) as engine, serve_in_background(create_app(engine, bank)) as url:
        yield RunningServer(url, lm, engine, bank)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(roomy_model(), tmp_path_factory.mktemp("bank")) as found:
        yield found


def calls_of(chunks: Any) -> tuple[list[tuple[str, str]], str, str | None]:
    """Calls, text and finish reason of a stream."""
    calls: list[list[str]] = []
    text, reason = "", None
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    assert call.id
                    assert call.type == "function"
                    calls.append([call.function.name, ""])
                calls[call.index][1] += call.function.arguments
    return [(name, arguments) for name, arguments in calls], text, reason


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_forced_calls_fit_their_schema(client: openai.OpenAI, model: str, choice: Any) -> None:
    options: dict[str, Any] = {"model": model, "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "seed": 4}
    options |= {"max_tokens": 180, "temperature": 1, "parallel_tool_calls": False}
    (whole,) = client.chat.completions.create(**options).choices
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    assert whole.message.tool_calls
    (call,) = whole.message.tool_calls
    assert call.type == "function"
    assert len(call.id) == 9
    if call.function.name == "paint":
        arguments = json.loads(call.function.arguments)
        assert arguments["colour"] in ("red", "blue")
        assert arguments["coats"] in (1, 2)
    else:
        assert (choice, call.function.name) == ("required", "wait")
    calls, text, reason = calls_of(client.chat.completions.create(**options, stream=True))
    assert (calls, text, reason) == ([(call.function.name, call.function.arguments)], "", "tool_calls")


def test_arguments_are_streamed_as_they_are_written(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "messages": HELLO, "tools": TOOLS, "tool_choice": NAMED}
    chunks = list(client.chat.completions.create(**options, max_tokens=60, stream=True))
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.tool_calls]) > 5


def test_allowed_tools_are_all_that_can_be_called(client: openai.OpenAI) -> None:
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WAIT]}}
    answer = client.chat.completions.create(
        model="poet", messages=HELLO, tools=TOOLS, tool_choice=allowed, parallel_tool_calls=False, max_tokens=200
    )
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["wait"]


def test_the_older_names(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "messages": HELLO, "functions": [COLOUR["function"]], "max_tokens": 60}
    (choice,) = client.chat.completions.create(**options, function_call={"name": "paint"}).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call
    assert choice.message.function_call.name == "paint"
    assert json.loads(choice.message.function_call.arguments).keys() == {"colour", "coats"}
    chunks = list(client.chat.completions.create(**options, function_call={"name": "paint"}, stream=True))
    parts = [part for chunk in chunks if (part := chunk.choices[0].delta.function_call)]
    assert "".join(part.arguments or "" for part in parts) == choice.message.function_call.arguments
    assert chunks[-1].choices[0].finish_reason == "function_call"


def test_a_call_that_is_cut_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="poet", messages=HELLO, tools=TOOLS, tool_choice=NAMED, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"


def test_tools_are_in_the_prompt_unless_none_may_be_called(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny-llama", "messages": HELLO, "max_tokens": 1}

    def tokens(**more: Any) -> int:
        usage = client.chat.completions.create(**options, **more).usage
        assert usage
        return usage.prompt_tokens

    assert tokens(tools=TOOLS) > tokens() + 200
    assert tokens(tools=TOOLS, tool_choice="none") == tokens()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice is"),
        ({"tools": TOOLS, "functions": [WAIT["function"]]}, "functions is the older name of tools"),
        ({"tools": TOOLS, "model": "mood"}, "mood"),
        ({"tools": TOOLS, "extra_body": {"continue_final_message": True}}, "continue_final_message is not supported"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "custom"),
    ],
)
def test_refused(client: openai.OpenAI, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(openai.BadRequestError, match=problem):
        client.chat.completions.create(**{"model": "poet", "messages": HELLO, "max_tokens": 2} | options)


def test_response_format_beside_tools(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"], "additionalProperties": False,
        "$defs": {"N": {"type": "integer", "enum": [1, 2]}},
    }}}  # fmt: skip
    options: dict[str, Any] = {"model": "poet", "messages": HELLO, "tools": [COLOUR], "response_format": form}
    kinds = set()
    for seed in range(12):
        (choice,) = client.chat.completions.create(
            **options, seed=seed, temperature=1, max_tokens=220, parallel_tool_calls=False
        ).choices
        kinds.add(choice.finish_reason)
        if choice.finish_reason == "tool_calls":
            assert [call.function.name for call in choice.message.tool_calls or ()] == ["paint"]
        else:
            assert json.loads(choice.message.content or "")["n"] in (1, 2)
        if len(kinds) == 2:
            break


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of a model whose template writes calls in one of the formats."""
    with running(roomy_model(FAMILIES[request.param]), tmp_path_factory.mktemp("bank")) as found:
        yield found


@pytest.mark.parametrize("model", ["tiny-llama", "poet", "kind"])
def test_named_calls_of_every_family(family_server: RunningServer, model: str) -> None:
    with family_server.client() as client:
        (choice,) = client.chat.completions.create(
            model=model, messages=HELLO, tools=TOOLS, tool_choice=NAMED, max_tokens=60
        ).choices
        assert [call.function.name for call in choice.message.tool_calls or ()] == ["paint"]


def test_a_strict_call_is_held_to_its_schema_where_the_model_chooses() -> None:
    """The model would write anything; a bias makes it begin a call, and the grammar does the rest."""
    from foreword.text.tool_choice import ToolChoice

    strict = {**COLOUR, "function": {**COLOUR["function"], "strict": True}}
    constraint = ToolChoice.parse([strict]).plan(HERMES).constraint
    assert constraint is not None
    lm = roomy_model()
    ids = tuple(lm.tokenizer.encode("Hello"))
    with Engine(lm, cache_bytes=1 << 24) as engine:
        grammar = engine._grammars.compile(constraint)
        for token in lm.tokenizer.encode('Yes <tool_call>\n{"name": "paint", "arguments": {"colour": "'):
            grammar.accept_token(token)
        assert grammar.error is None
        for token in lm.tokenizer.encode("green"):
            grammar.accept_token(token)
        assert grammar.error
        sampling = SamplingParams(max_tokens=5, constraint=constraint)
        (chunks,) = engine.generate([Request(ids, sampling=sampling)])
        assert chunks[-1].error is None


def test_a_special_mark_reaches_the_reader() -> None:
    """[TOOL_CALLS] is a special token of Mistral's tokenizers, which answers otherwise leave out."""
    lm = roomy_model(FAMILIES["mistral"])
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    mark = lm.tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    with (
        Engine(lm, cache_bytes=1 << 24) as engine,
        serve_in_background(create_app(engine, None)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        options: dict[str, Any] = {"model": "tiny-llama", "messages": HELLO, "logit_bias": {str(mark): 100}}
        options |= {"max_tokens": 2, "temperature": 0}
        told = client.chat.completions.create(**options, tools=TOOLS)
        silent = client.chat.completions.create(**options)
        shown = client.chat.completions.create(**options, extra_body={"skip_special_tokens": False})
    assert told.choices[0].message.content == shown.choices[0].message.content == "[TOOL_CALLS][TOOL_CALLS]"
    assert silent.choices[0].message.content == ""
