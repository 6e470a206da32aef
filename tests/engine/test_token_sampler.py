"""Options of one request: bias, penalties, least lengths, log-probabilities; each by the book, and in a crowd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import make_request, reference_logits, static_prefix, text_of, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from engine.test_sampling import CHI_SQUARE, DRAWS, SIZE, row
from foreword.core import SamplingParams
from foreword.engine import sampling
from foreword.engine.logits_processor import LogitsProcessor
from foreword.engine.protocol import Request
from foreword.errors import RequestError, UsageError
from foreword.text.detokenize import Detokenizer
from tiny_models import byte_tokenizer, tiny_model

PROMPT = (1, 2, 2, 3)
TAKEN = (3, 4, 4, 4)


def changed(params: SamplingParams) -> torch.Tensor:
    """By the book, a token at a time."""
    found = row(3).double()
    for token in range(SIZE):
        found[token] += params.logit_bias.get(token, 0.0)
        if token in PROMPT + TAKEN:
            found[token] *= params.repetition_penalty if found[token] <= 0 else 1 / params.repetition_penalty
        found[token] -= params.frequency_penalty * TAKEN.count(token)
        found[token] -= params.presence_penalty * (token in TAKEN)
    return found


def applied(params: SamplingParams) -> torch.Tensor:
    processor = LogitsProcessor(params, PROMPT, stop_token_ids=(0,))
    for token in TAKEN:
        processor.accept_token(token)
    return torch.from_numpy(processor.apply(row(3).numpy()))


params = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency_penalty=st.sampled_from([-0.5, 0.0, 1.1]),
    logit_bias=st.dictionaries(st.integers(0, SIZE - 1), st.floats(-5, 5), max_size=4),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(params=params)
def test_changed_logits_are_exact(params):
    before = row(3)
    torch.testing.assert_close(applied(params).double(), changed(params), atol=1e-5, rtol=1e-5)
    assert torch.equal(before, row(3))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, min_p=0.15),
        SamplingParams(temperature=1.4, top_p=0.95, min_p=0.1, presence_penalty=0.5, frequency_penalty=0.3),
        SamplingParams(temperature=1.2, top_k=8, min_p=0.05, repetition_penalty=1.4, logit_bias={5: 2.0}),
    ],
)
def test_draws_follow_the_exact_probabilities(params):
    from engine.test_sampling import exact

    adjusted = applied(params) / 2
    source = np.random.default_rng(11)
    drawn = torch.tensor([sampling.sample_token(adjusted.numpy(), params, source) for _ in range(DRAWS)])
    counts = torch.bincount(drawn, minlength=SIZE).double()
    expected = exact(changed(params).float() / 2, params)
    expected = expected.where(expected >= params.min_p * expected.max(), 0.0)
    expected = expected / expected.sum() * DRAWS
    inside = expected > 0
    assert counts[~inside].sum() == 0
    assert 1 < int(inside.sum()) < SIZE
    bound = next(bound for degrees, bound in CHI_SQUARE.items() if degrees >= int(inside.sum()) - 1)
    assert float(((counts - expected)[inside] ** 2 / expected[inside]).sum()) < bound


def answer(*requests: Request):
    engine = manual_engine("llama")
    streams = [engine.submit(request) for request in requests]
    run_until_idle(engine)
    return [list(stream) for stream in streams]


def test_greedy_with_penalties_follows_the_book_and_knows_a_static_prefix():
    prefix = static_prefix("llama", 21)
    (chunks,) = answer(make_request(6, 1, prefix, repetition_penalty=3.0, frequency_penalty=1.0, max_tokens=10))
    tokens, request = tokens_of(chunks), make_request(6, 1, prefix)
    found = reference_logits("llama", request, tokens[:-1])[-len(tokens) :]
    for place, token in enumerate(tokens):
        line = found[place].clone()
        for known in {*prefix.token_ids, *request.token_ids, *tokens[:place]}:
            line[known] = line[known] / 3.0 if line[known] > 0 else line[known] * 3.0
        for earlier in tokens[:place]:
            line[earlier] -= 1.0
        assert float(line.max() - line[token]) < 1e-4
    assert tokens != tokens_of(answer(make_request(6, 1, prefix, max_tokens=10))[0])


def test_log_probabilities_are_the_models_own():
    request = make_request(5, 2, temperature=1.5, seed=4, logprobs=3, repetition_penalty=1.5, max_tokens=6)
    (chunks,) = answer(request)
    tokens = tokens_of(chunks)
    expected = reference_logits("llama", request, tokens[:-1])[-len(tokens) :].log_softmax(-1)
    found = [each for chunk in chunks for each in chunk.logprobs]
    assert [each.token_id for each in found] == tokens
    for each, line in zip(found, expected, strict=True):
        assert each.logprob == pytest.approx(float(line[each.token_id]), abs=1e-4)
        assert [value for _, value in each.top] == pytest.approx(line.topk(3).values.tolist(), abs=1e-4)
    assert all(not chunk.logprobs for chunk in answer(make_request(5, 2))[0])


def test_a_seeded_answer_with_every_option_is_the_same_in_a_crowd():
    asked = replace(
        make_request(
            5, 1, temperature=1.3, seed=9, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.4, max_tokens=12
        )
    )
    alone = tokens_of(answer(asked)[0])
    crowd = answer(
        *(make_request(7, 20 + n, temperature=1.0, frequency_penalty=1.0) for n in range(4)), asked, make_request(3, 30)
    )
    assert tokens_of(crowd[4]) == alone
    assert tokens_of(crowd[5]) == tokens_of(answer(make_request(3, 30))[0])


def test_nothing_ends_an_answer_before_its_least_length():
    end = next(iter(tiny_model("llama").eos_token_ids))
    certain = {"ignore_eos": False, "logit_bias": {end: 90.0}, "max_tokens": 9}
    short, long = answer(make_request(4, **certain), make_request(4, **certain, min_tokens=5))
    assert tokens_of(short) == [end]
    assert tokens_of(long).index(end) == 5 == len(tokens_of(long)) - 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.text("ab好🎉", min_size=1, max_size=12),
    stop=st.text("ab好🎉", min_size=1, max_size=2),
    least=st.integers(0, 9),
)
def test_a_stop_text_counts_only_behind_the_least_length(text, stop, least):
    tokenizer = byte_tokenizer()
    detokenizer, found = Detokenizer(tokenizer, (stop,), least), ""
    ids = tokenizer.encode(text)
    for token in ids:
        found += detokenizer.push(token)
        if detokenizer.stopped:
            break
    found += detokenizer.finish()
    starts = [at for at in range(len(text)) if text.startswith(stop, at)]
    late = [at for at in starts if len(tokenizer.encode(text[: at + len(stop)])) > least]
    assert found == (text[: late[0]] if late else text)


def test_copies_count_their_seeds_up():
    request = make_request(4, temperature=1.0, seed=7)
    assert [copy.sampling.seed for copy in request.fan_out(3)] == [7, 8, 9]
    assert len({tuple(tokens_of(chunks)) for chunks in answer(*request.fan_out(3))}) == 3


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"min_p": 2}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"presence_penalty": 3}, "presence_penalty must be"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must map"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias must map"),
        ({"min_tokens": 200}, "min_tokens must be"),
        ({"logprobs": 21}, "logprobs must be"),
    ],
)
def test_wrong_values_are_named(option, sentence):
    with pytest.raises(UsageError, match=sentence):
        SamplingParams(**option)


def test_a_bias_of_an_unknown_token_is_refused():
    with pytest.raises(RequestError, match="logit_bias names token id 5000"):
        answer(make_request(3, logit_bias={5000: 1.0}))
    assert text_of(answer(make_request(3))[0])
