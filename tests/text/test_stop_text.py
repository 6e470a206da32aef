"""Stop texts are found as a search through the whole answer finds them, by work that grows with the answer alone."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.text.detokenize import Detokenizer
from foreword.text.stop_text import StopText
from tiny_models import byte_tokenizer

BYTES = byte_tokenizer()
texts = st.text("ab你", max_size=60)
stops = st.lists(st.text("ab你", min_size=1, max_size=6), max_size=5)


def naive(ids: list[int], stop: list[str], min_tokens: int, include: bool) -> tuple[str, bool]:
    """The answer up to the first stop text that is complete behind ``min_tokens`` tokens, and whether there is one."""
    whole = BYTES.decode(ids)
    early = len(BYTES.decode(ids[:min_tokens]).rstrip("\ufffd"))
    ends = [(end, -len(s)) for s in stop for end in range(early + 1, len(whole) + 1) if whole[:end].endswith(s)]
    if not ends:
        return whole, False
    end, length = min(ends)
    return whole[: end if include else end + length], True


@settings(max_examples=600, deadline=None, derandomize=True)
@given(text=texts, stop=stops, min_tokens=st.integers(0, 12), include=st.booleans())
def test_as_a_search_through_the_whole_answer(text, stop, min_tokens, include):
    detokenizer = Detokenizer(BYTES, stop, min_tokens, include_stop=include)
    found, ids = "", BYTES.encode(text)
    for token in ids:
        found += detokenizer.push(token)
        if detokenizer.stopped:
            break
    found += detokenizer.finish()
    assert (found, detokenizer.stopped) == naive(ids, stop, min_tokens, include)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=texts, stop=st.text("ab你", min_size=1, max_size=6), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_pieces_of_any_length(text, stop, cuts):
    automaton, at = StopText(stop), 0
    for low, high in pairwise(sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})):
        end = automaton.push(text[low:high])
        if end is not None:
            at = low + end
            break
        held = [n for n in range(len(stop)) if text[:high].endswith(stop[:n])]
        assert automaton.depth == max(held)
    assert at == (text.index(stop) + len(stop) if stop in text else 0)


def lines_run(function: Any) -> int:
    """Lines of Python that a call runs: a measure of work that no other process disturbs."""
    count = 0

    def trace(*_: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("piece", ["ab", "b" * 40 + "a"])
def test_work_grows_with_the_answer_and_not_with_the_stop_text(piece):
    def work(length: int, pieces: int) -> int:
        automaton = StopText("ab" * length + "c")  # its table is made before anything is counted
        return lines_run(lambda: [automaton.push(piece) for _ in range(pieces)])

    assert work(2000, 400) <= 1.1 * work(20, 400) + 100
    assert work(2000, 800) <= 2.2 * work(2000, 400)


class CountingTokenizer:
    """Counts the tokens that are decoded."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, ids: list[int], **options: Any) -> str:
        self.decoded += len(ids)
        return BYTES.decode(ids, **options)


@pytest.mark.parametrize(
    "tokens", [[0xFF], [0xE4], [0xE4, 0xBD], [BYTES.eos_token_id], [BYTES.eos_token_id] * 30 + [0xFF], [0x61]]
)
def test_what_never_becomes_text_is_not_decoded_again_and_again(tokens):
    """Lone bytes and special tokens wait for a text that does not come."""
    ids = [*tokens * (1200 // len(tokens)), *BYTES.encode("你 end")]
    tokenizer = CountingTokenizer()
    detokenizer = Detokenizer(tokenizer, ["zzz"])
    found = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
    assert found == BYTES.decode(ids, skip_special_tokens=True)
    assert tokenizer.decoded < 200 * len(ids)
