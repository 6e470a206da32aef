"""Streamed answers in lines that break between words."""

from __future__ import annotations

import pytest

from foreword.cli.chat.word_wrap import WordWrap


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_lines_break_between_words(piece):
    text = "The quick brown fox\n  jumps over the lazy dog"
    wrap = WordWrap(lambda: 12)
    shown = "".join(wrap.add(text[i : i + piece]) for i in range(0, len(text), piece)) + wrap.end()
    assert shown == "The quick\nbrown fox\n  jumps over\nthe lazy dog"


def test_chinese_breaks_anywhere_and_a_long_word_is_not_held_back():
    wrap = WordWrap(lambda: 6)
    assert wrap.add("退款三十天") == "退款三\n十天"
    assert wrap.add("abcdefghij") == "\nabcdef"
    assert wrap.end() == "\nghij"
