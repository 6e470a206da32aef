"""`token_bytes`: the bytes of a token, also of one that is a part of a character and has no text of its own."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

REPLACEMENT = "\ufffd"  # what a tokenizer decodes a part of a character to
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"  # of SentencePiece


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """UTF-8 of the text that a token adds in the middle of a text.

    Byte-level BPE (GPT-2, Llama 3, Qwen) writes every byte as one character, SentencePiece (Llama 2, Gemma) writes
    ``<0xE2>`` for a byte that is in no other token, and a space in front of a word as U+2581.
    """
    if token_id < 0:  # a soft token
        return b""
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    (piece,) = tokenizer.convert_ids_to_tokens([token_id])
    if not isinstance(piece, str) or piece == text:
        return text.encode()
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    if piece.startswith(_WORD_START):
        return piece.replace(_WORD_START, " ").encode()
    alphabet = _byte_alphabet()
    if REPLACEMENT in text and all(symbol in alphabet for symbol in piece):
        return bytes(alphabet[symbol] for symbol in piece)
    return text.encode()


def shown_bytes(data: bytes) -> str:
    """The text of a token, or ``\\\\xe2\\\\x80`` for one that is a part of a character, as OpenAI shows it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for every byte: printable ones stand for themselves, others come from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
