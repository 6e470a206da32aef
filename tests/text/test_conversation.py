"""Rows of every format become the same conversation, and what is wrong is said with the place and the mend."""

from __future__ import annotations

import json

import pytest

from foreword.errors import UsageError
from foreword.text.conversation import Conversation, is_conversation, is_prompt_completion

TURNS = [("user", "tea?"), ("assistant", "TEA!"), ("user", "and cake?"), ("assistant", "CAKE!")]
OPENAI = [{"role": role, "content": text} for role, text in TURNS]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": OPENAI},
        {"messages": json.dumps(OPENAI)},  # a cell of a CSV file
        {"messages": [{**message, "tool_calls": None, "name": None} for message in OPENAI]},  # Parquet
        {"messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in OPENAI]},
        {"conversations": SHAREGPT},
        {"conversations": OPENAI},
        {"prompt": "and cake?", "response": "CAKE!", "history": [["tea?", "TEA!"]]},
    ],
    ids=["openai", "csv", "parquet", "parts", "sharegpt", "roles", "chatglm"],
)
def test_formats_of_one_conversation(row):
    assert is_conversation(row)
    conversation = Conversation.read(row)
    assert [(message["role"], message["content"]) for message in conversation.messages] == TURNS
    assert conversation.answers == (1, 3)
    assert Conversation.read(row, "last").answers == (3,)


def test_prompt_and_completion_learn_the_completion_alone():
    conversation = Conversation.read({"prompt": OPENAI[:3], "completion": OPENAI[3:]})
    assert len(conversation.messages) == 4
    assert conversation.answers == (3,)
    texts = {"prompt": "tea?", "completion": " TEA!"}
    assert is_prompt_completion(texts)
    assert not is_conversation(texts)


@pytest.mark.parametrize("row", [{"text": "a", "label": "b"}, {"messages": "[sic] an SMS", "label": "spam"}])
def test_other_rows_are_no_conversations(row):
    assert not is_conversation(row)


def test_system_turns_tools_and_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"id": 7}}}
    tool = {"name": "find", "description": "", "parameters": {"type": "object"}}
    openai = Conversation.read(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Where is 7?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "here"},
                {"role": "assistant", "content": "Here."},
            ],
            "tools": json.dumps([tool]),
        }
    )
    sharegpt = Conversation.read(
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Where is 7?"},
                {"from": "function_call", "value": '{"name": "find", "arguments": {"id": 7}}'},
                {"from": "observation", "value": "here"},
                {"from": "gpt", "value": "Here."},
            ],
            "tools": [{"type": "function", "function": tool}],
        }
    )
    for conversation in (openai, sharegpt):
        assert [message["role"] for message in conversation.messages] == [
            "system",
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        assert conversation.answers == (2, 4)
        assert conversation.tools == ({"type": "function", "function": tool},)
        called = conversation.messages[2]["tool_calls"][0]["function"]
        assert called == {"name": "find", "arguments": {"id": 7}}
    assert openai.messages[2]["tool_calls"][0]["id"] == openai.messages[3]["tool_call_id"] == "c1"


def test_turns_that_are_not_learned():
    greeting = [{"role": "assistant", "content": "Welcome."}, *OPENAI]
    assert Conversation.read({"messages": greeting}).answers == (2, 4)  # nobody asks for a greeting
    left_out = [OPENAI[0], {**OPENAI[1], "weight": 0}, *OPENAI[2:]]
    assert Conversation.read({"messages": left_out}).answers == (3,)
    left_out = [SHAREGPT[0], {**SHAREGPT[1], "weight": 0}, *SHAREGPT]
    assert Conversation.read({"conversations": left_out}).answers == (3, 5)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": OPENAI},
        {"conversations": SHAREGPT},
        {"prompt": OPENAI[:3], "completion": OPENAI[3:]},
        {"prompt": "a", "response": "b", "history": []},
    ],
)
def test_a_field_system_is_the_first_turn_of_every_format(row):
    bare = Conversation.read(row)
    conversation = Conversation.read({**row, "system": "Be brief."})
    assert conversation.messages == ({"role": "system", "content": "Be brief."}, *bare.messages)
    assert conversation.answers == tuple(index + 1 for index in bare.answers)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, r"holds no conversation \(it has: text\)"),
        ({"messages": OPENAI, "conversations": SHAREGPT}, "mixes messages and conversations; keep one"),
        ({"messages": [OPENAI[0], SHAREGPT[1]]}, "messages mixes role and content with from and value"),
        ({"messages": []}, "messages is empty"),
        ({"messages": OPENAI[:1]}, "no turn of the assistant follows another"),
        ({"messages": OPENAI[1:2]}, "no turn of the assistant follows another"),
        ({"messages": [*OPENAI[:3], {"role": "assistant", "content": " "}]}, "message 4 is an empty turn"),
        (
            {"messages": [OPENAI[0], {"role": "narrator", "content": "x"}]},
            r"messages\[1\]: role is 'narrator'; use one of",
        ),
        ({"conversations": [{"from": "cat", "value": "x"}]}, r"conversations\[0\] is from 'cat'; use one of system"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] says not who speaks \(it has: content\)"),
        ({"messages": ["x"]}, r"messages\[0\] is of the type str; write"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, OPENAI[1]]},
            "parts of type 'image_url' are not",
        ),
        ({"messages": [{"role": "user", "content": 7}, OPENAI[1]]}, r"messages\[0\]: content must be a string"),
        ({"messages": [OPENAI[0], {**OPENAI[1], "weight": 0.5}]}, r"messages\[1\]: weight is 0.5"),
        ({"messages": [OPENAI[0], {"role": "assistant", "tool_calls": [{}]}]}, r"tool_calls\[0\].function must be"),
        (
            {"conversations": [{"from": "system", "value": "x"}, *SHAREGPT], "system": "y"},
            "a system turn and a field system; keep one",
        ),
        ({"messages": OPENAI, "tools": "a hammer"}, "tools must be a list of"),
        ({"messages": OPENAI, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs is not"),
        ({"prompt": "a", "completion": OPENAI[1:2]}, "write both as texts, or as lists"),
        ({"prompt": "a", "response": "b", "history": [["a"]]}, "pair 1 of history is not a question and its answer"),
    ],
)
def test_what_is_wrong_is_one_sentence(row, said):
    with pytest.raises(UsageError, match=said):
        Conversation.read(row)
