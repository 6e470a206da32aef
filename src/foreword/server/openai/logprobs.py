"""``choices[].logprobs`` as OpenAI's two endpoints write it: one entry for each generated token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from foreword.engine.protocol import LabelLogprob, TokenLogprob
from foreword.text.token_bytes import shown_bytes, token_bytes

Logprob = TokenLogprob | LabelLogprob


class CharacterCount:
    """Characters of a text that comes token by token, whose tokens may be parts of characters.

    Args:
        value: of the text in front.
    """

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> int:
        """Add the bytes of a token. Returns the characters that were whole in front of it: where it begins."""
        before = self.value
        self.value += len(self._decoder.decode(data))
        return before


def chat_logprobs(tokenizer: Any, logprobs: Sequence[Logprob]) -> dict[str, Any] | None:
    """``choices[].logprobs`` of ``/v1/chat/completions``; a part of a character is shown by its bytes."""
    if not logprobs:
        return None

    def entry(token: int | str, logprob: float) -> dict[str, Any]:
        data = _bytes(tokenizer, token)
        return {"token": shown_bytes(data), "logprob": logprob, "bytes": list(data)}

    entries = [
        entry(_token(each), each.logprob) | {"top_logprobs": [entry(*other) for other in each.top]} for each in logprobs
    ]
    return {"content": entries, "refusal": None}


def text_logprobs(tokenizer: Any, logprobs: Sequence[Logprob], count: CharacterCount) -> dict[str, Any] | None:
    """``choices[].logprobs`` of ``/v1/completions``.

    Args:
        count: of the tokens in front of these, which are added.
    """
    if not logprobs:
        return None
    data = [_bytes(tokenizer, _token(each)) for each in logprobs]
    return {
        "tokens": list(map(_shown, data)),
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [_top_logprobs(tokenizer, each) for each in logprobs],
        "text_offset": list(map(count.add, data)),
    }


def prompt_logprobs(
    tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], count: CharacterCount, unsent: int = 0
) -> dict[str, Any]:
    """`text_logprobs` of a prompt's own tokens; those that the model does not predict, as the first, have ``None``.

    Args:
        unsent: tokens at the beginning that the tokenizer adds, and that are not in the prompt's text.
    """
    data = [_bytes(tokenizer, each) for each in token_ids]
    unpredicted = len(token_ids) - len(logprobs)
    return {
        "tokens": list(map(_shown, data)),
        "token_logprobs": [None] * unpredicted + [each.logprob for each in logprobs],
        "top_logprobs": [None] * unpredicted + [_top_logprobs(tokenizer, each) for each in logprobs],
        "text_offset": [count.add(b"" if index < unsent else each) for index, each in enumerate(data)],
    }


def _top_logprobs(tokenizer: Any, logprob: Logprob) -> dict[str, float]:
    """The most probable tokens and the chosen one, by their texts."""
    every = (*logprob.top, (_token(logprob), logprob.logprob))
    return {_shown(_bytes(tokenizer, token)): value for token, value in every}


def _shown(data: bytes) -> str:
    """As OpenAI's older endpoint shows it: parts of characters behind ``bytes:``."""
    text = shown_bytes(data)
    return text if text.encode() == data else f"bytes:{text}"


def _token(logprob: Logprob) -> int | str:
    """The id of a token, or the word of a label."""
    return logprob.word if isinstance(logprob, LabelLogprob) else logprob.token_id


def _bytes(tokenizer: Any, token: int | str) -> bytes:
    return token.encode() if isinstance(token, str) else token_bytes(tokenizer, token)
