"""Log-probabilities of tokens in the two shapes of OpenAI's endpoints; one entry for each of an answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from foreword.engine.protocol import TokenLogprob

UNFINISHED = "\ufffd"


def chat_logprobs(tokenizer: Any, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """``choices[].logprobs`` of ``/v1/chat/completions``."""
    if not logprobs:
        return None

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = _decoded(tokenizer, token_id)
        # A token may be part of a character; its bytes are then not those of its text.
        parts = None if UNFINISHED in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": parts}

    entries = [
        entry(each.token_id, each.logprob) | {"top_logprobs": [entry(*other) for other in each.top]}
        for each in logprobs
    ]
    return {"content": entries, "refusal": None}


def text_logprobs(tokenizer: Any, logprobs: Sequence[TokenLogprob], start: int) -> dict[str, Any] | None:
    """``choices[].logprobs`` of ``/v1/completions``.

    Args:
        start: characters of the tokens in front of these.
    """
    if not logprobs:
        return None
    tokens = [_decoded(tokenizer, each.token_id) for each in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [_named(tokenizer, each) for each in logprobs],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=start)),
    }


def prompt_logprobs(tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The same for the tokens of a prompt, of which the first has nothing in front that it could follow."""
    known = text_logprobs(tokenizer, logprobs, 0) or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    blind = len(token_ids) - len(known["tokens"])
    tokens = [*(_decoded(tokenizer, each) for each in token_ids[:blind]), *known["tokens"]]
    return {
        "tokens": tokens,
        "token_logprobs": [None] * blind + known["token_logprobs"],
        "top_logprobs": [None] * blind + known["top_logprobs"],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)),
    }


def _named(tokenizer: Any, logprob: TokenLogprob) -> dict[str, float]:
    """The most probable tokens and the chosen one by their texts; those without one of their own by their ids."""
    named: dict[str, float] = {}
    for token_id, value in (*logprob.top, (logprob.token_id, logprob.logprob)):
        text = _decoded(tokenizer, token_id)
        named[f"token_id:{token_id}" if UNFINISHED in text else text] = value
    return named


def _decoded(tokenizer: Any, token_id: int) -> str:
    return tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
