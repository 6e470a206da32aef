"""``choices[].logprobs`` as OpenAI's two endpoints write it: one entry for each generated token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from foreword.engine.protocol import LabelLogprob, TokenLogprob

REPLACEMENT = "\ufffd"  # what a tokenizer decodes a part of a character to


Logprob = TokenLogprob | LabelLogprob


def chat_logprobs(tokenizer: Any, logprobs: Sequence[Logprob]) -> dict[str, Any] | None:
    """``choices[].logprobs`` of ``/v1/chat/completions``."""
    if not logprobs:
        return None

    def entry(token: int | str, logprob: float) -> dict[str, Any]:
        text = _decode(tokenizer, token)
        # A token may be part of a character; its bytes are then not those of its text.
        parts = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": parts}

    entries = [
        entry(_token(each), each.logprob) | {"top_logprobs": [entry(*other) for other in each.top]} for each in logprobs
    ]
    return {"content": entries, "refusal": None}


def text_logprobs(tokenizer: Any, logprobs: Sequence[Logprob], start: int) -> dict[str, Any] | None:
    """``choices[].logprobs`` of ``/v1/completions``.

    Args:
        start: characters of the tokens in front of these.
    """
    if not logprobs:
        return None
    tokens = [_decode(tokenizer, _token(each)) for each in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [_top_logprobs(tokenizer, each) for each in logprobs],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=start)),
    }


def prompt_logprobs(tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`text_logprobs` of a prompt's own tokens; those that the model does not predict, as the first, have ``None``."""
    found = text_logprobs(tokenizer, logprobs, 0) or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    unpredicted = len(token_ids) - len(found["tokens"])
    tokens = [*(_decode(tokenizer, each) for each in token_ids[:unpredicted]), *found["tokens"]]
    return {
        "tokens": tokens,
        "token_logprobs": [None] * unpredicted + found["token_logprobs"],
        "top_logprobs": [None] * unpredicted + found["top_logprobs"],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)),
    }


def _top_logprobs(tokenizer: Any, logprob: Logprob) -> dict[str, float]:
    """The most probable tokens and the chosen one by text; those that are part of a character by ``token_id:``."""
    by_text: dict[str, float] = {}
    for token, value in (*logprob.top, (_token(logprob), logprob.logprob)):
        text = _decode(tokenizer, token)
        by_text[f"token_id:{token}" if REPLACEMENT in text else text] = value
    return by_text


def _token(logprob: Logprob) -> int | str:
    """The id of a token, or the word of a label."""
    return logprob.word if isinstance(logprob, LabelLogprob) else logprob.token_id


def _decode(tokenizer: Any, token: int | str) -> str:
    return token if isinstance(token, str) else tokenizer.decode([token], clean_up_tokenization_spaces=False)
