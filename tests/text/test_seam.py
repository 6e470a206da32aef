"""Specials, continuations, and the seam between a static prefix and a request."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from foreword.errors import RequestError, TemplateError
from foreword.text import seam
from text.small_tokenizers import TOKENIZERS

TEXTS = st.text(alphabet=st.one_of(st.sampled_from(" \n\tgreat.:你好😀é"), st.characters(codec="utf-8")))


def test_specials_are_found_by_asking(byte_level, metaspace, wordpiece):
    assert seam.special_tokens(byte_level) == ((), ())
    assert seam.special_tokens(metaspace) == ((metaspace.bos_token_id,), ())
    assert seam.special_tokens(wordpiece) == ((2,), (3,))


def test_encode_leaves_trailing_specials_out(wordpiece):
    with_bos = seam.encode(wordpiece, "a great film", bos=True)
    assert with_bos[0] == 2
    assert 3 not in with_bos
    assert seam.encode(wordpiece, "a great film", bos=False) == with_bos[1:]


def test_encode_reads_special_tokens_in_the_text(metaspace):
    assert seam.encode(metaspace, "<s>", bos=False) == [metaspace.bos_token_id]


def test_encode_refuses_half_a_character(byte_level):
    with pytest.raises(RequestError, match="character 3, which no tokenizer can read; send the whole"):
        seam.encode(byte_level, "ab\ud83d", bos=False)


def test_continuation_in_mid_text(tokenizer: PreTrainedTokenizerFast):
    ids = seam.continuation_ids(tokenizer, " great", "\nLabel:")
    head = seam.encode(tokenizer, "\nLabel:", bos=False)
    assert head + ids == seam.encode(tokenizer, "\nLabel: great", bos=False)
    assert ids


def test_continuation_of_nothing_has_no_word_start(metaspace):
    assert metaspace.convert_ids_to_tokens(seam.encode(metaspace, "great", bos=False)) == ["▁great"]
    tokens = metaspace.convert_ids_to_tokens(seam.continuation_ids(metaspace, "great", ""))
    assert "".join(tokens) == "great"
    assert metaspace.convert_ids_to_tokens(seam.continuation_ids(metaspace, " great", "")) == ["▁great"]


def test_continuation_of_nothing_tries_another_anchor(byte_level):
    ids = seam.continuation_ids(byte_level, "\n\ngreat", "")
    assert byte_level.decode(ids) == "\n\ngreat"


def test_continuation_refuses_a_merge_across_the_seam(byte_level):
    with pytest.raises(TemplateError, match=r"'Label: ', merges with 'great'.*move the space.*' great'"):
        seam.continuation_ids(byte_level, "great", "Label: ")


def test_common_prefix_length():
    assert seam.common_prefix_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert seam.common_prefix_length([1, 2], [1, 2, 3]) == 2
    assert seam.common_prefix_length([], [1]) == 0
    assert seam.common_prefix_length("abc", "abd") == 2


def test_match_prefix_always_leaves_one_id():
    assert seam.match_prefix([1, 2, 3], [1, 2, 3]) == (2, [3])
    assert seam.match_prefix([1, 2, 3], [1, 2, 3, 4]) == (3, [4])
    assert seam.match_prefix([1, 2, 3], [1, 9]) == (1, [9])
    assert seam.match_prefix([], [5]) == (0, [5])


def test_match_prefix_of_nothing():
    with pytest.raises(RequestError, match=r"the request is empty.*; send at least one token"):
        seam.match_prefix([1], [])


@settings(max_examples=60, deadline=None)
@given(prefix=TEXTS, request=TEXTS, name=st.sampled_from(sorted(TOKENIZERS)))
def test_match_prefix_gives_the_joined_text(prefix: str, request: str, name: str):
    prefix_ids = seam.encode(TOKENIZERS[name], prefix, bos=True)
    joined = seam.encode(TOKENIZERS[name], prefix + request, bos=True)
    if not joined:
        return
    usable, rest = seam.match_prefix(prefix_ids, joined)
    assert prefix_ids[:usable] + rest == joined
    assert rest


def test_a_seam_that_merges_uses_less_of_the_prefix(byte_level):
    prefix_ids = seam.encode(byte_level, "Label: ", bos=True)
    usable, rest = seam.match_prefix(prefix_ids, seam.encode(byte_level, "Label: great", bos=True))
    assert usable == len(prefix_ids) - 1
    assert byte_level.decode(rest) == " great"
