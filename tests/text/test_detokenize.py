"""Text of a growing answer: pieces add up to the whole, no character is split, no stop text gets out."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from foreword.models import load_model
from foreword.text.detokenize import REPLACEMENT_CHARACTER, Detokenizer
from text.small_tokenizers import TOKENIZERS
from tiny_models import byte_tokenizer


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: letters, and bytes for all else. A run of bytes is text only if the whole run is."""
    symbols = [*(f"<0x{value:02X}>" for value in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "gr"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("g", "r")], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTES = byte_tokenizer()
FIXTURE = [HealthCheck.function_scoped_fixture]
SPLITTING = {"bytes": BYTES, "fallback": fallback_tokenizer(), "byte_level": TOKENIZERS["byte_level"]}
LONG = "你好,世界!退款需要几天?🎉👍🏽🇨🇳 a great film — naïve café " * 4


def pieces(tokenizer, ids, stop=()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop)
    found = [detokenizer.push(token) for token in ids]
    return [*found, detokenizer.finish()]


def whole(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", SPLITTING)
@pytest.mark.parametrize("text", ["great films", LONG, "退款" * 40, "🎉" * 40, " ", "\n\n a  b"])
def test_pieces_add_up_and_no_character_is_split(name, text):
    tokenizer = SPLITTING[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert "".join(found) == whole(tokenizer, ids) == text
    assert not any(REPLACEMENT_CHARACTER in piece for piece in found)


@pytest.mark.parametrize("name", SPLITTING)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_any_text(name, text):
    tokenizer = SPLITTING[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = "".join(pieces(tokenizer, ids))
    assert found == whole(tokenizer, ids)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 257), max_size=60))
def test_any_bytes(ids):
    """What a model says need not be UTF-8."""
    assert "".join(pieces(BYTES, ids)) == whole(BYTES, ids)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text("ab你\n", max_size=30),
    stop=st.lists(st.text("ab你\n", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_text_cuts_the_answer_where_it_first_stands(text, stop):
    detokenizer, found = Detokenizer(BYTES, stop), ""
    for token in BYTES.encode(text):
        found += detokenizer.push(token)
        assert not any(end in found for end in stop)
        if detokenizer.stopped:
            break
    found += detokenizer.finish()
    ends = [end for end in stop if end in text]
    assert detokenizer.stopped == bool(ends)
    # The text that was complete first ends the answer; of two that end together, the one that began first.
    if ends:
        done = min(text.index(end) + len(end) for end in ends)
        starts = [text.index(end) for end in ends if text.index(end) + len(end) == done]
        assert found == text[: min(starts)]
    else:
        assert found == text


def test_text_is_given_as_soon_as_it_is_certain():
    found = pieces(BYTES, BYTES.encode("ab好\nLx\nLabel"), stop=("\nLabel",))
    assert found == ["a", "b", "", "", "好", "", "", "\nLx", "", "", "", "", "", "", ""]


def test_special_tokens_are_left_out():
    end = BYTES.eos_token_id
    first, second = BYTES.encode("a")[0], BYTES.encode("b")[0]
    assert pieces(BYTES, [first, end, end, second]) == ["a", "", "", "b", ""]


def test_a_special_token_between_words_keeps_their_space():
    tokenizer = TOKENIZERS["metaspace"]
    great, film = tokenizer.encode("great film", add_special_tokens=False)[:2]
    ids = [great, tokenizer.eos_token_id, film]
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids)


# What falls apart into several tokens: Chinese, joined emoji, flags, combining marks, and what looks alike.
MIXED = [
    "退款",
    "你",
    "好",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇨🇳",
    "👍🏽",
    "é",
    "e\u0301",
    "ก็",
    "नमस्ते",
    " great",
    "a",
    "\n",
    "\u200d",
    "\ufffd",
]
mixed = st.lists(st.sampled_from(MIXED), max_size=16).map("".join)


@pytest.fixture(scope="module")
def built_in():
    return load_model("smollm2-135m", progress=lambda line: None).tokenizer


@pytest.fixture(params=["bytes", "byte_level", "built-in", "fallback"])
def any_tokenizer(request):
    return request.getfixturevalue("built_in") if request.param == "built-in" else SPLITTING[request.param]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=FIXTURE)
@given(text=mixed)
def test_text_of_many_bytes_a_character(any_tokenizer, text):
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(any_tokenizer, ids)) == whole(any_tokenizer, ids)


@pytest.mark.parametrize("any_tokenizer", ["bytes", "byte_level", "built-in"], indirect=True)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=FIXTURE)
@given(data=st.data())
def test_any_tokens(any_tokenizer, data):
    """In any order, cut characters, bytes that are no text and special tokens among them.

    Not as Llama 2 decodes: there one wrong byte disowns the whole run before it, characters that were given with it.
    """
    parts = st.sampled_from(any_tokenizer.encode("".join(MIXED), add_special_tokens=False))
    ids = data.draw(st.lists(parts | st.integers(0, len(any_tokenizer) - 1), max_size=40))
    assert "".join(pieces(any_tokenizer, ids)) == whole(any_tokenizer, ids)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=FIXTURE)
@given(text=mixed, stop=mixed.filter(bool), cut=st.tuples(st.integers(0, 20), st.integers(1, 6)), inside=st.booleans())
def test_a_stop_text_of_any_characters(any_tokenizer, text, stop, cut, inside):
    """Stop texts begin and end within tokens, and within what a reader sees as one character."""
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    text = whole(any_tokenizer, ids)
    stop = (text[cut[0] :][: cut[1]] or stop) if inside else stop
    detokenizer, found = Detokenizer(any_tokenizer, (stop,)), ""
    for token in ids:
        found += detokenizer.push(token)
        if detokenizer.stopped:
            break
    found += detokenizer.finish()
    assert detokenizer.stopped == (stop in text)
    assert found == text.split(stop, 1)[0]


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_stop_texts_in_one_token_the_first_complete_one_counts(order):
    tokenizer = TOKENIZERS["byte_level"]
    (token,) = tokenizer.encode(" great", add_special_tokens=False)
    assert pieces(tokenizer, [token], ("great", "re", "eat")[::order]) == [" g", ""]
    assert pieces(tokenizer, [token], ("at", "eat")[::order]) == [" gr", ""]
