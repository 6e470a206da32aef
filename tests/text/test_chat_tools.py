"""Tools and their calls in conversations: by the model's template where it knows them, as ordinary turns where not."""

from __future__ import annotations

import copy
import json
import re

import pytest

from foreword.errors import RequestError, UnsupportedOption
from foreword.llamacpp.tokenizer import FileTokenizer
from foreword.text import chat, task_prompts
from foreword.text.tool_formats import TOOL_FORMATS
from foreword.text.tools import parse_tools
from text.tool_templates import FAMILIES, LLAMA, MISTRAL, NO_SYSTEM, QWEN, UNKNOWN

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
USER = {"role": "user", "content": "2+2?"}


def call(name: str = "add", arguments: object = '{"a": 2}', call_id: str = "c1") -> dict:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def history(*calls: dict) -> list[dict]:
    calls = calls or (call(),)
    results = [{"role": "tool", "tool_call_id": each["id"], "content": f"result {each['id']}"} for each in calls]
    return [USER, {"role": "assistant", "content": None, "tool_calls": list(calls)}, *results]


@pytest.fixture
def with_template(byte_level):
    def build(template: str):
        tokenizer = copy.copy(byte_level)
        tokenizer.chat_template = template
        return tokenizer

    return build


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family_writes_its_own_format(with_template, family: str):
    tokenizer = with_template(FAMILIES[family])
    messages = history(call(call_id="abcdefghi"))
    found = chat.tool_format(tokenizer, messages, tools=[ADD])
    text = chat.render(tokenizer, messages, tools=[ADD])
    assert found.name == family
    assert found.writes("add", text)
    assert "result abcdefghi" in text
    asked = chat.render(tokenizer, [USER], tools=[ADD])
    assert json.dumps(ADD["function"]["parameters"]) in asked
    assert "You can call functions" not in asked


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_template_writes_is_read_back(with_template, family: str):
    row = next(row for row in TOOL_FORMATS if row.name == family)
    arguments = {"a": 2, "text": 'say "hi" </tool', "list": [1, {"b": None}]}
    text = chat.render(
        with_template(FAMILIES[family]), history(call(arguments=json.dumps(arguments), call_id="123456789"))
    )
    begin = min((text.index(mark) + len(mark) for mark in row.marks if mark in text), default=text.find('{"name"'))
    stops = [row.end] if row.end else ["</s>", "<|eot|>"]
    body = text[begin : min(text.index(stop, begin) for stop in stops if stop in text[begin:])]
    (found,) = row.parse(body)
    read = json.loads(found.arguments)
    if family == "qwen3_coder":  # its tags hold Python's writing of a list, which is a text
        read["list"] = arguments["list"]
    assert (found.name, read) == ("add", arguments)


def test_arguments_reach_the_template_as_an_object(with_template):
    text = chat.render(with_template(QWEN), history(call(arguments='{"a":2}')))
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>' in text
    assert '"arguments": {}' in chat.render(with_template(QWEN), history(call(arguments="")))


def test_a_template_without_tools_has_them_as_ordinary_turns(byte_level):
    messages = history(call(), call("sub", "{}", "c2"))
    text = chat.render(byte_level, messages, tools=[ADD])
    assert text.startswith("<|im_start|>system\nYou can call functions.")
    assert json.dumps(ADD) in text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call><|im_end|>' in text
    )
    responses = "<tool_response>\nresult c1\n</tool_response>\n<tool_response>\nresult c2\n</tool_response>"
    assert f"<|im_start|>user\n{responses}<|im_end|>\n<|im_start|>assistant\n" in text
    assert chat.tool_format(byte_level, messages, tools=[ADD]).name == "hermes"


def test_a_system_turn_stays_in_front_of_the_tools(byte_level):
    text = chat.render(byte_level, [USER], system="Be brief.", tools=[ADD])
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")


def test_a_template_without_system_turns_has_them_in_the_first_user_turn(with_template):
    text = chat.render(with_template(NO_SYSTEM), history(), tools=[ADD])
    assert text.startswith("<turn>user\nYou can call functions.")
    assert "<turn>user\n<tool_response>\nresult c1\n</tool_response></turn>" in text


def test_a_format_that_cannot_be_read_is_not_taught(with_template):
    tokenizer = with_template(UNKNOWN)
    assert "<call-of-a-new-kind>" not in chat.render(tokenizer, [USER], tools=[ADD])
    assert "<call-of-a-new-kind>" in chat.render(tokenizer, history())


def test_parallel_calls_that_a_template_refuses_are_ordinary_turns(with_template):
    tokenizer = with_template(LLAMA)
    messages = history(call(), call(call_id="c2"))
    assert chat.render(tokenizer, messages, tools=[ADD]).count("<tool_call>\n{") == 3
    assert chat.tool_format(tokenizer, messages, tools=[ADD]).name == "hermes"
    assert chat.tool_format(tokenizer, [USER], tools=[ADD]).name == "llama3"


def test_ids_are_shortened_for_templates_that_want_nine_characters(with_template):
    text = chat.render(with_template(MISTRAL), history(call(call_id="call_0123456789abcdef")))
    (written,) = re.findall(r'"id": "(\w+)"', text)
    assert len(written) == 9
    assert f'"call_id": "{written}"' in text


def test_older_names_of_calls_and_results(with_template):
    messages = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
        {"role": "function", "name": "add", "content": "4"},
    ]
    text = chat.render(with_template(QWEN), messages)
    assert '{"name": "add", "arguments": {"a": 2}}' in text
    assert "<tool_response>\n4\n" in text


def test_null_content_is_empty(byte_level):
    messages = [USER, {"role": "assistant", "content": None}, {"role": "user", "content": None}]
    text = chat.render(byte_level, messages)
    assert "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n<|im_end|>" in text


def test_variables_reach_the_template(with_template):
    assert chat.render(with_template(QWEN), [USER], template_kwargs={"enable_thinking": False}).endswith("</think>\n\n")
    with pytest.raises(RequestError, match="chat_template_kwargs must not hold tokenize"):
        chat.render(with_template(QWEN), [USER], template_kwargs={"tokenize": True})


def test_the_last_message_is_continued(byte_level):
    messages = [USER, {"role": "assistant", "content": "It is "}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert chat.render(byte_level, messages, **options).endswith("<|im_start|>assistant\nIt is ")
    assert chat.render(byte_level, messages, add_generation_prompt=False).endswith("It is <|im_end|>\n")
    with pytest.raises(RequestError, match="send add_generation_prompt: false with it"):
        chat.render(byte_level, messages, continue_final_message=True, add_generation_prompt=True)


def test_a_last_message_that_is_left_out_cannot_be_continued(with_template):
    tokenizer = with_template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(RequestError, match="leaves the text of the last message out"):
        chat.render(tokenizer, [USER, {"role": "assistant", "content": "a"}], continue_final_message=True)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_tokenizer_without_transformers_renders_alike(with_template, family: str):
    tokenizer = with_template(FAMILIES[family])
    file = FileTokenizer(tokenizer.backend_tokenizer, tokenizer.special_tokens_map, tokenizer.chat_template)
    messages = history(call(call_id="123456789"))
    for options in ({}, {"tools": [ADD]}, {"template_kwargs": {"enable_thinking": False}}):
        assert chat.render(file, messages, **options) == chat.render(tokenizer, messages, **options)


@pytest.mark.parametrize(
    ("tools", "error", "problem"),
    [
        ("x", RequestError, "tools must be a list"),
        (["x"], RequestError, "tools[0] must be"),
        ([{"type": "web_search"}], UnsupportedOption, "tools[0]: tools of type 'web_search' run at OpenAI"),
        ([{"type": "function", "function": {"name": "a b"}}], RequestError, "tools[0].function.name is 'a b'"),
        ([ADD, ADD], RequestError, "tools: the function 'add' is there twice"),
        ([{"function": {"name": "a", "parameters": 1}}], RequestError, "tools[0].function.parameters must be"),
        ([{"function": {"name": "a", "parameters": {"type": "string"}}}], RequestError, "parameters has type 'string'"),
        ([{"function": {"name": "a", "description": 1}}], RequestError, "tools[0].function.description must be"),
        ([{"function": {"name": "a", "strict": 1}}], RequestError, "tools[0].function.strict must be"),
    ],
)
def test_tools_that_are_none(tools: object, error: type[Exception], problem: str):
    with pytest.raises(error, match=re.escape(problem)):
        parse_tools(tools)


def test_a_task_with_a_template_takes_no_tools(byte_level, make_task):
    task = make_task(2, template="{text} =>")
    for options, name in (({"tools": [ADD]}, "tools"), ({"template_kwargs": {"a": 1}}, "chat_template_kwargs")):
        with pytest.raises(UnsupportedOption, match=f"{name} is not supported by task 'demo'"):
            task_prompts.from_messages(byte_level, task, [USER], **options)
    with pytest.raises(UnsupportedOption, match="tools is not supported by task 'demo'"):
        task_prompts.tool_format(byte_level, task, [USER], tools=[ADD])


def test_static_and_learned_tasks_take_tools(byte_level, make_task):
    system = task_prompts.static_token_ids(byte_level, "system", "Be brief.")
    static = make_task(token_ids=system, kind="system", text="Be brief.", bos="none")
    prompt = task_prompts.from_messages(byte_level, static, history(), tools=[ADD], answer_prefix="<tool_call>")
    text = byte_level.decode([*system[: prompt.prefix_length], *prompt.token_ids])
    assert text == chat.render(byte_level, history(), system="Be brief.", tools=[ADD]) + "<tool_call>"
    assert prompt.prefix_length > 5
    learned = task_prompts.from_messages(byte_level, make_task(3), history(), tools=[ADD])
    assert byte_level.decode(learned.token_ids) == chat.render(byte_level, history(), tools=[ADD])


def test_behind_a_distilled_system_turn_tools_are_in_the_user_turn(byte_level, make_task):
    task = make_task(3, kind="system", text="Be brief.", bos="none")
    prompt = task_prompts.from_messages(byte_level, task, [USER], tools=[ADD])
    text = byte_level.decode(prompt.token_ids)
    assert text.startswith("You can call functions.")
    assert text.endswith("2+2?<|im_end|>\n<|im_start|>assistant\n")
    assert task_prompts.tool_format(byte_level, task, [USER], tools=[ADD]).name == "hermes"
    with pytest.raises(RequestError, match="no user turn"):
        task_prompts.from_messages(byte_level, task, [{"role": "system", "content": "x"}], tools=[ADD])
