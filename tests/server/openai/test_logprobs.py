"""Log-probabilities of tokens that are parts of characters: bytes and offsets, whole and streamed."""

from __future__ import annotations

from typing import Any

import openai
import pytest

TEXT = "é好🙂!"


def forced(text: str) -> dict[str, Any]:
    """Options that make the answer ``text``, which the byte tokenizer cuts into single bytes."""
    return {"temperature": 0, "max_tokens": 40, "extra_body": {"structured_outputs": {"choice": [text]}}}


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_a_chat_are_those_of_its_text(client: openai.OpenAI, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    options: dict[str, Any] = {"model": "tiny-llama", "messages": messages, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = client.chat.completions.create(**options, **forced(TEXT), stream=True)
        entries = [
            entry
            for chunk in chunks
            for choice in chunk.choices
            if choice.logprobs is not None
            for entry in choice.logprobs.content or ()
        ]
    else:
        (choice,) = client.chat.completions.create(**options, **forced(TEXT)).choices
        assert choice.logprobs is not None
        entries = list(choice.logprobs.content or ())
        assert choice.message.content == TEXT
    found = [bytes(entry.bytes or []) for entry in entries]
    assert b"".join(found)[: len(TEXT.encode())].decode() == TEXT
    assert [entry.token for entry in entries][:2] == ["\\xc3", "\\xa9"]
    assert all(top.bytes is not None for entry in entries for top in entry.top_logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_of_a_completion_are_those_of_characters(client: openai.OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {"model": "tiny-llama", "prompt": "ü好", "logprobs": 2, "echo": True}
    if stream:
        chunks = list(client.completions.create(**options, **forced(TEXT), stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs is not None]
        offsets = [each for part in parts for each in part.text_offset or ()]
        tokens = [each for part in parts for each in part.tokens or ()]
    else:
        (choice,) = client.completions.create(**options, **forced(TEXT)).choices
        assert choice.logprobs is not None
        text, offsets, tokens = choice.text, choice.logprobs.text_offset or [], choice.logprobs.tokens or []
    assert text == "ü好" + TEXT
    expected = [index for index, character in enumerate(text) for _ in character.encode()]
    assert offsets[: len(expected)] == expected
    assert tokens[:2] == ["bytes:\\xc3", "bytes:\\xbc"]
    assert tokens[len(expected) - 1] == "!"
