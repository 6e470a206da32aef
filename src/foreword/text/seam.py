"""Token ids at a seam, where one text continues another and the two are tokenized apart.

A prefix is computed before its request is known, a template's text before its answer. The model must still see the
ids that the tokenizer gives for the joined text: without a second beginning-of-text token, with a word in its mid-text
form, and with no token that spans the seam. Verbalizers, training and requests take their ids from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foreword.errors import RequestError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A SentencePiece tokenizer marks the start of a text as the start of a word, so a word that continues nothing
# would get another token than one in mid-text. Each of these stands in for the unknown text before it; the
# first that stays apart from the word is used, since a newline may be dropped and a letter may merge.
_ANCHORS = ("\n", ":", "a")
_PROBES = ("a", "0", ".", "的")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer adds before and after a text.

    Llama: a beginning-of-text token before; BERT: ``[CLS]`` before and ``[SEP]`` after; GPT-2: none.
    """
    for probe in _PROBES:
        plain = _ids(tokenizer, probe, add_special_tokens=False)
        full = _ids(tokenizer, probe, add_special_tokens=True)
        for start in range(len(full) - len(plain) + 1):
            if plain and full[start : start + len(plain)] == plain:
                return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool) -> list[int]:
    """Token ids of a text without trailing specials, and with the leading ones only if ``bos``.

    Raises RequestError for a text that is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has half of a surrogate pair at character {error.start + 1}, which no tokenizer can "
            "read; send the whole character."
        ) from None
    ids = _ids(tokenizer, text, add_special_tokens=False)
    return [*special_tokens(tokenizer)[0], *ids] if bos else ids


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, after: str) -> list[int]:
    """Token ids of ``text`` where it continues ``after`` (empty: unknown text).

    Raises TemplateError if the two merge, so that no token boundary lies between them.
    """
    for before in (after,) if after else _ANCHORS:
        head = encode(tokenizer, before, bos=False)
        ids = encode(tokenizer, before + text, bos=False)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    raise TemplateError(
        f"the text before the answer, {after[-20:]!r}, merges with {text[:20]!r} into other tokens; move the "
        "space from the end of the text before the answer to the start of the word or target, as in "
        f"{' ' + text[:20]!r}."
    )


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str, after: str | None) -> list[int]:
    """Token ids of an answer that continues ``after``, or that an encoder-decoder's decoder begins with (``None``)."""
    return encode(tokenizer, text, bos=True) if after is None else continuation_ids(tokenizer, text, after)


def common_prefix_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the longest common prefix of two sequences: token ids, or the characters of two texts."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def match_prefix(prefix_ids: Sequence[int], joined_ids: Sequence[int]) -> tuple[int, list[int]]:
    """How many positions of a static prefix a request can reuse, and the ids that remain to be run.

    Args:
        prefix_ids: of the static prefix.
        joined_ids: of the prefix's text and the request tokenized as one, which may differ from the prefix at the end.

    Keys are causal, so any slice of a static prefix is exact. At least one id remains, since the next token
    is predicted by running one. Raises RequestError if there is nothing to run.
    """
    if not joined_ids:
        raise RequestError("the request is empty, so there is nothing to continue; send at least one token.")
    reused = min(common_prefix_length(prefix_ids, joined_ids), len(joined_ids) - 1)
    return reused, list(joined_ids[reused:])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool) -> list[int]:
    # Quiet: whether a text is too long is decided by the engine, not by the tokenizer's model_max_length.
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))
