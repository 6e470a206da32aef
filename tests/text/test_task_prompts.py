"""How a request meets a task: which positions of the prefix, which ids to run."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.errors import RequestError, TemplateError, UsageError
from foreword.text import chat, seam, task_prompts
from foreword.text.prompt import Prompt
from text.small_tokenizers import TOKENIZERS

HELLO = [{"role": "user", "content": "great film"}]
SYSTEM = "You are a helpful assistant."


def whole(prompt: Prompt) -> list[int]:
    """All token ids that the model sees, for static prefixes."""
    front = prompt.prefix.token_ids[: prompt.prefix_length] if prompt.prefix else ()
    return [*front, *prompt.token_ids]


def static(make_task, tokenizer, kind: str, text: str):
    ids = task_prompts.static_token_ids(tokenizer, kind, text)
    bos = "prefix" if seam.special_tokens(tokenizer)[0] else "none"
    return make_task(token_ids=ids, bos=bos, kind=kind, text=text)


def test_base_model_runs_the_text_with_its_bos(metaspace):
    prompt = task_prompts.from_text(metaspace, None, "a great film")
    assert prompt.token_ids == tuple(seam.encode(metaspace, "a great film", bos=True))
    assert (prompt.prefix, prompt.prefix_length) == (None, 0)


@pytest.mark.parametrize(("bos", "added"), [("request", True), ("prefix", False), ("none", False)])
def test_learned_prefix_is_whole_and_says_who_has_the_bos(make_task, metaspace, bos: str, added: bool):
    task = make_task(3, bos=bos)
    prompt = task_prompts.from_text(metaspace, task, "great")
    assert prompt.token_ids == tuple(seam.encode(metaspace, "great", bos=added))
    assert prompt.prefix is task.prefix
    assert prompt.prefix_length == 3
    chatted = task_prompts.from_messages(metaspace, task, HELLO)
    assert chatted.token_ids.count(metaspace.bos_token_id) == int(added)


@pytest.mark.parametrize("bos", ["request", "prefix", "none"])
def test_turns_stay_whole_where_the_tokenizer_adds_no_bos(make_task, byte_level, bos: str):
    rendered = chat.render(byte_level, HELLO)
    learned = task_prompts.from_messages(byte_level, make_task(2, bos=bos), HELLO)
    assert byte_level.decode(list(learned.token_ids)) == rendered
    raw = task_prompts.from_messages(byte_level, static(make_task, byte_level, "prompt", SYSTEM), HELLO)
    assert byte_level.decode(whole(raw)) == SYSTEM + rendered


@pytest.mark.parametrize("bos", ["request", "prefix"])
def test_an_empty_prefix_is_no_prefix(make_task, metaspace, bos: str):
    prompt = task_prompts.from_text(metaspace, make_task(0, bos=bos), "great")
    assert (prompt.prefix, prompt.prefix_length) == (None, 0)
    assert prompt.token_ids[0] == metaspace.bos_token_id


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(min_size=1, max_size=12),
    rest=st.one_of(st.text(max_size=12), st.sampled_from([" ", "great ", "你好", "😀 "])),
    name=st.sampled_from(["byte_level", "metaspace"]),
)
def test_static_prompt_is_the_joined_text(make_task, text: str, rest: str, name: str):
    tokenizer = TOKENIZERS[name]
    task = static(make_task, tokenizer, "prompt", text)
    prompt = task_prompts.from_text(tokenizer, task, rest)
    assert whole(prompt) == seam.encode(tokenizer, text + rest, bos=True)
    assert prompt.token_ids


def test_static_prompt_that_ends_in_a_space(make_task, byte_level):
    task = static(make_task, byte_level, "prompt", "Label: ")
    prompt = task_prompts.from_text(byte_level, task, "great")
    assert prompt.prefix_length == task.prefix.length - 1
    assert byte_level.decode(list(prompt.token_ids)) == " great"


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_static_system_turn_is_the_joined_conversation(make_task, name: str):
    tokenizer = TOKENIZERS[name]
    task = static(make_task, tokenizer, "system", SYSTEM)
    prompt = task_prompts.from_messages(tokenizer, task, HELLO)
    assert whole(prompt) == chat.encode(tokenizer, chat.render(tokenizer, HELLO, system=SYSTEM))
    assert prompt.prefix_length >= task.prefix.length - 1
    for bos in seam.special_tokens(tokenizer)[0]:
        assert whole(prompt).count(bos) == 1
    raw = task_prompts.from_text(tokenizer, task, "great")
    assert whole(raw) == chat.encode(tokenizer, chat.system_text(tokenizer, SYSTEM) + "great")


def test_static_prompt_stands_raw_before_the_conversation(make_task, metaspace):
    task = static(make_task, metaspace, "prompt", SYSTEM)
    prompt = task_prompts.from_messages(metaspace, task, HELLO)
    assert whole(prompt) == seam.encode(metaspace, SYSTEM + "[user]great film[assistant]", bos=True)
    assert whole(prompt).count(metaspace.bos_token_id) == 1


def test_fields_fill_the_template(make_task, byte_level):
    task = make_task(2, template="{a} and {b}:{mask}")
    prompt = task_prompts.from_fields(byte_level, task, {"a": "x", "b": 3})
    assert byte_level.decode(list(prompt.token_ids)) == "x and 3:"


def test_fields_behind_a_static_prompt(make_task, byte_level):
    plain = static(make_task, byte_level, "prompt", SYSTEM)
    task = make_task(token_ids=plain.prefix.token_ids, kind="prompt", text=SYSTEM, template=" {q}\n{target:a}")
    prompt = task_prompts.from_fields(byte_level, task, {"q": "why"})
    assert byte_level.decode(whole(prompt)) == SYSTEM + " why\n"


def test_one_field_takes_the_single_user_message(make_task, byte_level):
    task = make_task(2, template="{text}\nLabel:{mask}")
    prompt = task_prompts.from_messages(byte_level, task, HELLO)
    assert byte_level.decode(list(prompt.token_ids)) == "great film\nLabel:"


@pytest.mark.parametrize(
    "messages",
    [[*HELLO, *HELLO], [{"role": "system", "content": "x"}], [{"role": "system", "content": "x"}, *HELLO]],
)
def test_one_field_takes_no_conversation(make_task, byte_level, messages: list):
    with pytest.raises(RequestError, match=r"task 'demo' answers one user message.*send only the message"):
        task_prompts.from_messages(byte_level, make_task(2, template="{text}{mask}"), messages)


def test_ids_follow_the_whole_prefix(make_task):
    learned = task_prompts.from_ids(make_task(2), [5, 6])
    assert (learned.token_ids, learned.prefix_length) == ((5, 6), 2)
    task = make_task(token_ids=[1, 2, 3], kind="prompt", text="x")
    assert whole(task_prompts.from_ids(task, [5])) == [1, 2, 3, 5]
    only_prefix = task_prompts.from_ids(task, [])
    assert (only_prefix.token_ids, only_prefix.prefix_length) == ((3,), 2)
    assert task_prompts.from_ids(None, [7]).token_ids == (7,)


def test_a_prefix_of_which_nothing_is_used_is_none(make_task, byte_level):
    task = make_task(token_ids=[0], kind="prompt", text="x")
    prompt = task_prompts.from_text(byte_level, task, "y")
    assert (prompt.prefix, prompt.prefix_length) == (None, 0)


def test_empty_requests(make_task, byte_level):
    for task in (None, make_task(2)):
        with pytest.raises(RequestError, match=r"the request is empty.*; send at least one token"):
            task_prompts.from_text(byte_level, task, "")
        with pytest.raises(RequestError, match="the request is empty"):
            task_prompts.from_ids(task, [])


def test_fields_without_a_template(make_task, byte_level):
    with pytest.raises(TemplateError, match="the base model has no template for fields; send the text itself"):
        task_prompts.from_fields(byte_level, None, {"text": "x"})
    with pytest.raises(TemplateError, match="task 'demo' has no template"):
        task_prompts.from_fields(byte_level, make_task(2), {"text": "x"})


def test_missing_field(make_task, byte_level):
    with pytest.raises(TemplateError, match=re.escape("inputs: the row has no field 'text' (it has: txt)")):
        task_prompts.from_fields(byte_level, make_task(2, template="{text}{mask}"), {"txt": "x"})


def test_static_prefix_without_its_text(make_task, byte_level):
    with pytest.raises(RequestError, match=r"without its text.*; send token ids, or publish it again"):
        task_prompts.from_text(byte_level, make_task(token_ids=[1]), "x")


def test_static_ids_need_a_text_and_a_kind(byte_level):
    with pytest.raises(UsageError, match="is empty; give it at least one character"):
        task_prompts.static_token_ids(byte_level, "prompt", "")
    with pytest.raises(UsageError, match="use kind 'system' or 'prompt'"):
        task_prompts.static_token_ids(byte_level, "learned", "x")


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
@pytest.mark.parametrize("kind", ["system", "prompt"])
@pytest.mark.parametrize("messages", [HELLO, [*HELLO, {"role": "assistant", "content": "yes"}, *HELLO]])
def test_a_prefix_that_stands_for_a_text_is_asked_as_the_text_is(make_task, name: str, kind: str, messages):
    """What is run behind it is what is run behind all of the text's own positions."""
    tokenizer = TOKENIZERS[name]
    full = static(make_task, tokenizer, kind, SYSTEM)
    distilled = make_task(3, bos=full.prefix.bos, kind=kind, text=SYSTEM)
    expected, found = (task_prompts.from_messages(tokenizer, task, messages) for task in (full, distilled))
    assert expected.prefix_length == full.prefix.length
    assert (found.token_ids, found.prefix_length) == (expected.token_ids, 3)
    rendered = whole(expected)
    if kind == "system":  # as another renderer hands it over, the system turn included
        assert task_prompts.from_rendered(tokenizer, distilled, rendered).token_ids == expected.token_ids
    assert task_prompts.from_text(tokenizer, distilled, "and so").token_ids == (
        task_prompts.from_text(tokenizer, full, "and so").token_ids
    )


WORDS = {"good": (" yes",), "bad": (" no",)}


@pytest.mark.parametrize(
    ("template", "text", "verbatim"),
    [
        ("Review: {text}\nMood:{mask}", "great", False),
        ("Review: {text}\nMood:{mask}", "Review: great\nMood:", True),
        ("Review: {text}\nMood:{mask}", "Review: great", False),
        ("Review: {text}\nMood:{mask}", "Review: a\nMood: yes\nReview: b\nMood:", True),
        ("{text}{mask}", "great", True),
        ("{a} and {b}:{mask}", "one and two:", True),
        ("ab{text}ba{mask}", "aba", False),  # the texts at both ends share no letter
    ],
)
def test_a_text_for_a_task_that_labels_is_worded_or_fills_the_field(make_task, byte_level, template, text, verbatim):
    task = make_task(2, template=template, verbalizer=WORDS)
    asked = byte_level.decode(list(task_prompts.from_text(byte_level, task, text).token_ids))
    assert asked == (text if verbatim else template.removesuffix("{mask}").replace("{text}", text))


def test_a_text_that_is_not_worded_for_several_fields(make_task, byte_level):
    task = make_task(2, template="{a} and {b}:{mask}", verbalizer=WORDS)
    with pytest.raises(RequestError, match="fills the fields a and b; send inputs"):
        task_prompts.from_text(byte_level, task, "one")


def test_messages_for_several_fields(make_task, byte_level):
    task = make_task(2, template="{a}, {b} and {c}:{target:d}")
    with pytest.raises(RequestError, match="fills the fields a, b and c; send inputs to /v1/completions"):
        task_prompts.from_messages(byte_level, task, HELLO)
