"""Word tokenization for text metrics. Chinese and Japanese, written without spaces, are compared by characters."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

# Iteration mark and zero, kana, ideographs with their extensions, compatibility ideographs.
_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{_CJK}]")
_PIECE = re.compile(f"[{_CJK}]|[^{_CJK}\\s]+")
_WORD = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def answer_words(text: str) -> list[str]:
    """Words of a short answer as in the SQuAD evaluation (Rajpurkar et al. 2016, arXiv:1606.05250): in small letters,
    without punctuation and English articles. Punctuation of other scripts goes too, as in MLQA (arXiv:1910.07475)."""
    return _PIECE.findall(_ARTICLE.sub(" ", "".join(filter(_is_kept, text.lower()))))


def plain_words(text: str) -> list[str]:
    """Runs of letters and digits in small letters. For English as in ``rouge-score``, which drops other scripts."""
    return _WORD.findall(text.lower())


def mostly_cjk(texts: Iterable[str]) -> bool:
    """Whether Chinese or Japanese characters are more than half of all characters that are not white space."""
    joined = "".join("".join(text.split()) for text in texts)
    return 2 * len(_CHARACTER.findall(joined)) > len(joined)


def _is_kept(character: str) -> bool:
    return character not in string.punctuation and not unicodedata.category(character).startswith("P")
