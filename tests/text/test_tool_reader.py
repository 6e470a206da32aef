"""Answers told apart into text and calls, whatever pieces they come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from foreword.core import Constraint
from foreword.errors import RequestError, UnsupportedOption
from foreword.text.tool_choice import ToolChoice
from foreword.text.tool_formats import HERMES, TOOL_FORMATS, ToolFormat
from foreword.text.tool_reader import CallDelta, FreeToolReader, NamedToolReader, TextDelta, ToolListReader, ToolReader

FORMATS = {row.name: row for row in TOOL_FORMATS}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ONE = [("add", {"a": 1})]


def read(make: Callable[[], ToolReader], text: str, size: int) -> tuple[str, list[tuple[str, dict]]]:
    """Text and calls of an answer that comes ``size`` characters at a time."""
    reader = make()
    parts = [part for start in range(0, len(text), size) for part in reader.push(text[start : start + size])]
    found, calls = "", []
    for part in (*parts, *reader.finish()):
        if isinstance(part, TextDelta):
            assert part.text
            found += part.text
        elif part.name is not None:
            assert part.index == len(calls)
            calls.append([part.name, part.arguments])
        else:
            calls[part.index][1] += part.arguments
    return found, [(name, json.loads(arguments)) for name, arguments in calls]


def free(row: ToolFormat = HERMES, parallel: bool = True) -> Callable[[], ToolReader]:
    return lambda: FreeToolReader(row, ["add", "sub"], parallel)


CASES: Sequence[tuple[str, str, str, list]] = [
    ("hermes", "Hello <there>.\n", "Hello <there>.\n", []),
    ("hermes", CALL, "", ONE),
    ("hermes", f"I add.\n\n{CALL}\n", "I add.", ONE),
    ("hermes", f"{CALL}\n{CALL}", "", ONE * 2),
    ("hermes", f"{CALL} Done.", " Done.", ONE),
    ("hermes", CALL.removesuffix("\n</tool_call>"), "", ONE),
    ("hermes", '<tool_call>[{"name": "add", "arguments": {"a": 1}}, {"name": "sub", "arguments": {}}]</tool_call>', "",
     [*ONE, ("sub", {})]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "</tool_call>"}}</tool_call>', "",
     [("add", {"a": "</tool_call>"})]),
    ("hermes", "<tool_call>\n{broken}\n</tool_call> and", "<tool_call>\n{broken}\n</tool_call> and", []),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "other", "arguments": {}}</tool_call>', []),
    ("hermes", "<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, []),
    ("hermes", f"<tool_call>no</tool_call>\n{CALL}", "<tool_call>no</tool_call>", ONE),
    ("hermes", "a < b and <tool_", "a < b and <tool_", []),
    ("qwen3_coder", "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", "", ONE),
    ("llama3", '{"name": "add", "parameters": {"a": 1}}', "", ONE),
    ("llama3", '\n{"name": "add", "parameters": {"a": 1}}; {"name": "sub", "parameters": {}}', "", [*ONE, ("sub", {})]),
    ("llama3", '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", ONE),
    ("llama3", '{"answer": 1}', '{"answer": 1}', []),
    ("llama3", 'The JSON {"name": "add", "parameters": {}}', 'The JSON {"name": "add", "parameters": {}}', []),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "123456789"}]', "", ONE),
    ("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", []),
    ("mistral_v11", '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]sub[CALL_ID]abcdefghi[ARGS]{}', "", [*ONE, ("sub", {})]),
    ("mistral_v11", 'First[TOOL_CALLS]add{"a": 1}', "First", ONE),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 7, 1_000_000])
@pytest.mark.parametrize(("family", "answer", "text", "calls"), CASES)
def test_free_answers(family: str, answer: str, text: str, calls: list, size: int) -> None:
    if len(answer) > 10_000 and size < 1_000_000:
        pytest.skip("long")
    assert read(free(FORMATS[family]), answer, size) == (text, calls)


def test_nothing_of_a_mark_comes_before_it_is_certain() -> None:
    reader = FreeToolReader(HERMES, ["add"])
    assert reader.push("Yes <tool") == [TextDelta("Yes")]
    assert reader.push("_call") == []
    assert reader.push("er") == [TextDelta(" <tool_caller")]
    assert reader.push("<tool_call>{") == []


def test_one_call_at_most() -> None:
    assert read(free(parallel=False), CALL * 2, 5) == ("", ONE)
    row = FORMATS["llama3"]
    two = '{"name": "add", "parameters": {"a": 1}};{"name": "sub", "parameters": {}}'
    assert read(free(row, parallel=False), two, 5) == ("", ONE)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_named_and_listed_answers(size: int) -> None:
    assert read(lambda: NamedToolReader("add"), '{"a": 1}', size) == ("", ONE)
    arguments = {"a": 'br{ces} "and\\" quotes', "b": {"c": [{}]}}
    listed = json.dumps([{"name": "add", "arguments": arguments}, {"name": "sub", "arguments": {}}])
    assert read(ToolListReader, listed, size) == ("", [("add", arguments), ("sub", {})])
    assert read(ToolListReader, '{"answer": [1]}', size) == ('{"answer": [1]}', [])


def test_forced_arguments_come_as_they_are_written() -> None:
    reader = ToolListReader()
    assert reader.push('[{"name": "add", "arguments": ') == []
    assert reader.push('{"a"') == [CallDelta(0, "add", "{"), CallDelta(0, None, '"a"')]
    assert reader.push(": 1") == [CallDelta(0, None, ": 1")]
    assert reader.push("}}, ") == [CallDelta(0, None, "}")]


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "sub")]


def test_choices() -> None:
    named = {"type": "function", "function": {"name": "sub"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice, names, mode in [
        (None, ["add", "sub"], "auto"),
        ("auto", ["add", "sub"], "auto"),
        ("none", [], "auto"),
        ("required", ["add", "sub"], "required"),
        (named, ["sub"], "named"),
        (allowed, ["sub"], "required"),
    ]:
        found = ToolChoice.parse(TOOLS, choice)
        assert ([tool.name for tool in found.tools], found.mode) == (names, mode)


@pytest.mark.parametrize(
    ("tools", "choice", "error", "problem"),
    [
        (None, "required", RequestError, 'tool_choice "required" needs tools'),
        (TOOLS, "any", RequestError, 'tool_choice is "any"; send none, auto, required'),
        (TOOLS, {"type": "function", "function": {"name": "x"}}, RequestError, 'names "x", which is not among'),
        (TOOLS, {"type": "custom"}, UnsupportedOption, "of type 'custom'"),
        (TOOLS, {"type": "allowed_tools", "allowed_tools": {"mode": "x"}}, RequestError, "must hold a mode"),
    ],
)
def test_choices_that_are_none(tools: object, choice: object, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        ToolChoice.parse(tools, choice)


def test_a_response_beside_calls_is_an_object() -> None:
    choice = ToolChoice.parse(TOOLS)
    plan = choice.plan(HERMES, Constraint.json_schema({"type": "object"}))
    assert isinstance(plan.make_reader(), ToolListReader)
    with pytest.raises(UnsupportedOption, match="either calls of tools or JSON"):
        choice.plan(HERMES, Constraint.regex("a+"))


def test_forced_arguments_are_those_of_the_schema_alone() -> None:
    inner = {"type": "object", "properties": {"type": {"type": "string", "enum": [{"type": "object"}]}}}
    free = {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}
    parameters = {"properties": {"inner": inner, "free": free, "any": {"type": "object"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    choice = {"type": "function", "function": {"name": "f"}}
    constraint = ToolChoice.parse([tool], choice).plan(HERMES).constraint
    assert constraint is not None
    schema = json.loads(constraint.text)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["inner"] == {**inner, "additionalProperties": False}
    assert schema["properties"]["free"] == free
    assert schema["properties"]["any"] == {"type": "object"}
