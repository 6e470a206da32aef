"""What can never run is refused at once, with a sentence; the rest of the engine does not notice."""

from __future__ import annotations

import pytest

from engine.reference import assert_greedy, learned_prefix, make_request, random_ids, static_prefix, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import KVPrefix, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import ModelMismatch, PromptTooLong, RequestError, UnsupportedModel
from tiny_models import tiny_model


def mismatched() -> KVPrefix:
    return learned_prefix("gpt2", 4)


REFUSED = {
    "empty": (Request(()), RequestError, "empty"),
    "negative id": (Request((5, -1)), RequestError, r"token id -1 is outside 0\.\.299"),
    "id past the end": (Request((300, 5)), RequestError, r"token id 300 is outside 0\.\.299"),
    "prompt too long": (make_request(256, max_tokens=1), PromptTooLong, "256 tokens.*context of 256"),
    "prefix too long": (
        make_request(200, 0, learned_prefix("llama", 56), max_tokens=1),
        PromptTooLong,
        "256 tokens with its prefix",
    ),
    "too many tokens": (make_request(200, max_tokens=57), PromptTooLong, "at most 56"),
    "too many pages": (make_request(100, max_tokens=50), PromptTooLong, "149 positions of the cache, which has 128"),
    "no prefix": (Request((5,), None, 2), RequestError, "has none"),
    "nothing of a learned prefix": (Request((5,), learned_prefix("llama", 4)), RequestError, "4 to 4"),
    "a slice of a learned prefix": (Request((5,), learned_prefix("llama", 4), 3), RequestError, "4 to 4"),
    "nothing of a static prefix": (Request((5,), static_prefix("llama", 4)), RequestError, "1 to 4"),
    "more than a static prefix": (Request((5,), static_prefix("llama", 4), 5), RequestError, "1 to 4"),
    "less than nothing": (Request((5,), static_prefix("llama", 4), -1), RequestError, "1 to 4"),
    "another model's prefix": (Request((5,), learned_prefix("gpt2", 4), 4), ModelMismatch, "another model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    request, error, sentence = REFUSED[case]
    engine = manual_engine("llama", pages=8)
    good = engine.submit(make_request(3))
    with pytest.raises(error, match=sentence):
        engine.submit(request)
    run_until_idle(engine)
    assert_greedy("llama", good.request, tokens_of(good))
    assert engine.statistics()["requests"] == 1


def test_the_largest_request_that_fits_runs():
    engine = manual_engine("llama", pages=17)
    prefix = learned_prefix("llama", 6)
    full = engine.submit(make_request(240, 0, prefix, max_tokens=10))
    run_until_idle(engine)
    assert len(tokens_of(full)) == 10
    with pytest.raises(PromptTooLong, match="needs 265 positions of the cache, which has 256"):
        manual_engine("llama", pages=16).submit(make_request(240, 0, prefix, max_tokens=10))
    cramped = manual_engine("llama", pages=2)
    stream = cramped.submit(make_request(24, max_tokens=9))
    run_until_idle(cramped)
    assert len(tokens_of(stream)) == 9


def test_a_shorter_context_can_be_asked_for():
    engine = manual_engine("llama", max_model_len=20)
    assert engine.context == 20
    with pytest.raises(PromptTooLong, match="context of 20"):
        engine.submit(make_request(15, max_tokens=6))
    assert manual_engine("llama", max_model_len=10_000).context == 256


def test_an_encoder_writes_no_text():
    with (
        Engine(tiny_model("bert"), cache_bytes=1 << 20) as engine,
        pytest.raises(UnsupportedModel, match="is an encoder, which writes no text; classify or tag with it"),
    ):
        engine.submit(Request((5, 6)))


def test_a_copy_with_other_weights_needs_permission():
    from dataclasses import replace

    known = learned_prefix("llama", 4)
    copied = KVPrefix(replace(known.model, weights="f" * 64), known.keys, known.values, known.offset)
    request = Request(random_ids(4, 0), copied, 4, SamplingParams(max_tokens=3, ignore_eos=True))
    with pytest.raises(ModelMismatch, match="other weights"):
        manual_engine("llama").submit(request)
    engine = manual_engine("llama", allow_other_weights=True)
    stream = engine.submit(request)
    run_until_idle(engine)
    assert_greedy("llama", make_request(4, 0, known), tokens_of(stream))
