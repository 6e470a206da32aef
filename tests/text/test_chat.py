"""Messages as text, and the leading text of a system prompt."""

from __future__ import annotations

import re

import pytest

from foreword.errors import RequestError, TemplateError, UnsupportedOption
from foreword.text import chat, seam

HELLO = [{"role": "user", "content": "Hello"}]


def test_render_adds_the_generation_prompt(byte_level):
    text = chat.render(byte_level, HELLO)
    assert text.startswith("<|im_start|>system\nBe kind.")
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_a_system_turn_suppresses_the_default(byte_level):
    text = chat.render(byte_level, HELLO, system="Be brief.")
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert "Be kind." not in text


def test_parts_are_joined_and_developer_is_system(byte_level):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    text = chat.render(byte_level, [{"role": "developer", "content": parts}, *HELLO])
    assert text.startswith("<|im_start|>system\none two<|im_end|>")


@pytest.mark.parametrize("user", ["Hello", "你好", "", " <", "😀", "Be brief."])
def test_system_text_leads_whatever_the_user_says(byte_level, metaspace, user: str):
    for tokenizer in (byte_level, metaspace):
        leading = chat.system_text(tokenizer, "Be brief.")
        rendered = chat.render(tokenizer, [{"role": "user", "content": user}], system="Be brief.")
        assert rendered.startswith(leading)
        assert "Be brief." in leading


def test_a_dropped_system_turn_is_refused(byte_level):
    template = byte_level.chat_template
    byte_level.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    try:
        with pytest.raises(TemplateError, match=r"leaves the system turn out.*--text instead of --system"):
            chat.system_text(byte_level, "Be brief.")
    finally:
        byte_level.chat_template = template


def test_encode_puts_the_leading_specials_in_once(metaspace, byte_level, wordpiece):
    ids = chat.encode(metaspace, chat.render(metaspace, HELLO))
    assert ids.count(metaspace.bos_token_id) == 1
    assert ids[0] == metaspace.bos_token_id
    assert chat.encode(metaspace, "no mark") == seam.encode(metaspace, "no mark", bos=True)
    assert chat.encode(byte_level, "x") == seam.encode(byte_level, "x", bos=False)
    assert chat.encode(wordpiece, "great") == seam.encode(wordpiece, "great", bos=True)


def test_without_bos(metaspace, byte_level):
    assert chat.without_bos(metaspace, "<s>[user]x") == "[user]x"
    assert chat.without_bos(metaspace, "[user]<s>") == "[user]<s>"
    turn = "<|im_start|>user\nx<|im_end|>"
    assert chat.without_bos(byte_level, turn) == turn


def test_no_chat_template(wordpiece):
    with pytest.raises(TemplateError, match=r"no chat template.*/v1/completions, or use `foreword generate`"):
        chat.render(wordpiece, HELLO)


def test_a_template_that_refuses(metaspace):
    messages = [*HELLO, {"role": "system", "content": "late"}]
    with pytest.raises(RequestError, match=re.escape("(Only one system turn); change their roles")):
        chat.render(metaspace, messages)


LISTS_ALONE = {
    "left out": "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] if part['type'] == 'text' %}"
    "{{ part['text'] | trim }}{% endfor %}{% endfor %}",
    "an error": "{% for m in messages %}<{{ m['role'] }}>{{ m['content'][0]['text'] | upper | lower | trim }}"
    "{{ m['content'][0].text + '' }}{% endfor %}",
}


@pytest.mark.parametrize("kind", LISTS_ALONE)
def test_a_template_that_knows_lists_of_parts_alone_gets_them(byte_level, kind):
    """Templates of models that read images too: a text would be left out without a word, or be refused."""
    template = byte_level.chat_template
    byte_level.chat_template = LISTS_ALONE[kind]
    try:
        text = chat.render(byte_level, [*HELLO, {"role": "assistant", "content": " hi "}], system="be brief")
        assert re.sub(r"\s", "", text).lower().startswith("<system>bebrief")
        assert "Hello" in text
        assert " be " not in text.replace("be brief", "")
        assert chat.system_text(byte_level, "be brief").startswith("<system>be brief")
    finally:
        byte_level.chat_template = template


@pytest.mark.parametrize("written", ["m['content']", "m['content'] | tojson"])
def test_a_template_that_takes_thoughts_out_of_texts_gets_texts(byte_level, written):
    """With lists the whole thought would be there, in the list's own brackets."""
    template = byte_level.chat_template
    byte_level.chat_template = (
        "{% for m in messages %}{% if '</think>' in m['content'] %}{{ m['content'].split('</think>')[1] }}"
        "{% else %}{{ " + written + " }}{% endif %}|{% endfor %}"
    )
    try:
        text = chat.render(byte_level, [*HELLO, {"role": "assistant", "content": "<think>x</think>yes"}, *HELLO])
    finally:
        byte_level.chat_template = template
    assert text.replace('"', "") == "Hello|yes|Hello|"


@pytest.mark.parametrize("role", ["user", "system", "tool"])
@pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "file", "video_url"])
def test_parts_that_are_no_text_are_refused_by_name(byte_level, role, kind):
    message = {"role": role, "content": [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {}}]}
    sentence = f"messages[1].content[1]: parts of type '{kind}' are not supported; send only text."
    with pytest.raises(UnsupportedOption, match=re.escape(sentence)):
        chat.render(byte_level, [*HELLO, message])


@pytest.mark.parametrize("messages", [[], "hello", None, {"role": "user"}])
def test_no_messages(byte_level, messages: object):
    with pytest.raises(RequestError, match="non-empty list; send at least one with role 'user'"):
        chat.render(byte_level, messages)


@pytest.mark.parametrize(
    ("message", "error", "problem"),
    [
        ({"role": "bot", "content": "x"}, RequestError, "messages[0]: role is 'bot'; use one of system"),
        ({"content": "x"}, RequestError, "messages[0]: role is None; use one of system"),
        ("hello", RequestError, "messages[0]: role is None"),
        ({"role": "user"}, RequestError, "content must be a string or a non-empty list of text parts; send"),
        ({"role": "user", "content": []}, RequestError, "content must be a string or a non-empty list"),
        ({"role": "user", "content": ["x"]}, RequestError, "messages[0].content[0] must be an object; write"),
        ({"role": "user", "content": [{"type": "text"}]}, RequestError, "text must be a string; write"),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            UnsupportedOption,
            "parts of type 'image_url' are not supported; send only text",
        ),
        (
            {"role": "user", "content": "x", "audio": {"id": "a"}},
            UnsupportedOption,
            "messages[0]: audio is not supported",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, RequestError, "messages[0].tool_calls[0].function must be"),
        ({"role": "assistant", "tool_calls": "x"}, RequestError, "messages[0]: tool_calls must be a list of calls"),
        (
            {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
            RequestError,
            "only the assistant calls tools",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            RequestError,
            "messages[0].tool_calls[0].function.arguments must be the text of a JSON object, found list",
        ),
    ],
)
def test_messages_that_are_not_messages(byte_level, message: dict, error: type[Exception], problem: str):
    with pytest.raises(error, match=re.escape(problem)):
        chat.render(byte_level, [message])
