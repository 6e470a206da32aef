"""Tokens that a tokenizer knows and a model has no embedding for: added to the one, and the other not resized."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foreword.errors import RequestError


def check_token_ids(tokenizer: Any, rows: int, token_ids: Iterable[int]) -> None:
    """Raise RequestError for the first token id without a row.

    Args:
        tokenizer: names the token.
        rows: of the model's input embedding.
        token_ids: ids below 0 are soft tokens, which have none.
    """
    if (token := next((each for each in token_ids if each >= rows), None)) is None:
        return
    name = getattr(tokenizer, "convert_ids_to_tokens", None)
    word = name(token) if name is not None and token < len(tokenizer) else None
    if word is None:
        raise RequestError(f"token id {token} is outside 0..{rows - 1}.")
    raise RequestError(
        f"token {word!r} ({token}) has no row in the model's embedding of {rows}; resize the model's embeddings "
        "(model.resize_token_embeddings) or take the tokens out."
    )


def tokens_without_row(tokenizer: Any, rows: int) -> list[str]:
    """Every token of a tokenizer that has no row, by its id."""
    if len(tokenizer) <= rows:
        return []
    known = sorted((token, word) for word, token in tokenizer.get_vocab().items() if token >= rows)
    return [word for _, word in known]
