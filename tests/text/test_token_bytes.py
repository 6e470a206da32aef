"""The bytes of tokens that are parts of characters."""

from __future__ import annotations

from typing import Any

import pytest

from foreword.text.token_bytes import shown_bytes, token_bytes
from text.test_detokenize import TOKENIZERS, fallback_tokenizer
from tiny_models import byte_tokenizer

TEXT = "né 好 🙂 e\u0301 \ufffd"
SPLITTING = {"bytes": byte_tokenizer(), "byte_level": TOKENIZERS["byte_level"], "fallback": fallback_tokenizer()}


@pytest.mark.parametrize("name", SPLITTING)
def test_the_bytes_of_all_tokens_are_those_of_the_text(name: str) -> None:
    tokenizer: Any = SPLITTING[name]
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    found = [token_bytes(tokenizer, token) for token in ids]
    assert b"".join(found).decode().strip() == TEXT
    assert any(len(data) == 1 and data[0] > 127 for data in found)


def test_parts_of_characters_are_shown_by_their_bytes() -> None:
    assert shown_bytes("好".encode()) == "好"
    assert shown_bytes("好".encode()[:2]) == "\\xe5\\xa5"
    assert shown_bytes(b"") == ""


def test_special_and_soft_tokens() -> None:
    tokenizer = byte_tokenizer()
    assert token_bytes(tokenizer, 256) == b"<eos>"
    assert token_bytes(tokenizer, -1) == b""
