"""Beam search equals Transformers' own: tokens and scores, beams that end and beams that are cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.reference import learned_prefix, make_request, random_ids, reference_logits, static_prefix, stock_model
from foreword.core import Constraint, SamplingParams
from foreword.engine.beam_search import Beam, beam_search
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineError, PromptTooLong, UnsupportedModel, UnsupportedOption, UsageError
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        yield engine


def likely(request: Request, count: int) -> tuple[int, ...]:
    """Tokens that a search without ends writes in the middle: as ends, they end some of its beams and not all."""
    beams = by_transformers(request, 4, 1.0, [])
    return tuple({tokens[at]: None for tokens, _ in beams for at in (5, 2, 8) if at < len(tokens)})[:count]


def by_transformers(
    request: Request, width: int, penalty: float, ends: list[int]
) -> list[tuple[tuple[int, ...], float]]:
    front = (request.prefix.token_ids or ()) if request.prefix is not None else ()
    ids = torch.tensor([[*front, *request.token_ids]])
    found = stock_model("llama").generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        early_stopping=False,
        length_penalty=penalty,
        max_new_tokens=request.sampling.max_tokens,
        eos_token_id=ends or None,
        pad_token_id=299,
        output_scores=True,
        return_dict_in_generate=True,
    )
    answers = [row[ids.shape[1] :].tolist() for row in found.sequences]
    return [(tuple(t for t in a if t != 299), s) for a, s in zip(answers, found.sequences_scores.tolist(), strict=True)]


@pytest.mark.parametrize("prefix", [0, 21])
@pytest.mark.parametrize(("width", "penalty"), [(2, 1.0), (4, 1.0), (4, 0.0), (5, 2.5), (3, -1.0)])
@pytest.mark.parametrize("ends", [0, 1, 3])
@pytest.mark.parametrize("max_tokens", [1, 14])
def test_beams_are_those_of_transformers(engine, prefix, width, penalty, ends, max_tokens):
    request = make_request(9, 3, static_prefix("llama", prefix) if prefix else None, max_tokens=max_tokens)
    stops = likely(request, ends)
    request = replace(request, sampling=replace(request.sampling, stop_token_ids=stops))
    found = beam_search(engine, request, width, penalty)
    expected = by_transformers(request, width, penalty, list(stops))
    assert [beam.token_ids for beam in found] == [tokens for tokens, _ in expected]
    assert [beam.score for beam in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert [beam.finished for beam in found] == [beam.token_ids[-1] in stops for beam in found]


def test_some_beams_of_these_tests_end_and_some_are_cut(engine):
    request = make_request(9, 3, max_tokens=14)
    ended = []
    for ends in (1, 3):
        stops = likely(request, ends)
        found = beam_search(engine, replace(request, sampling=replace(request.sampling, stop_token_ids=stops)), 4, 1.0)
        ended += [beam.finished for beam in found]
    assert set(ended) == {True, False}


def test_the_models_own_ends_count_unless_they_are_ignored(engine):
    ends = tiny_model("llama").eos_token_ids
    assert engine.all_stop_token_ids(SamplingParams(stop_token_ids=(7,))) == {*ends, 7}
    assert engine.all_stop_token_ids(SamplingParams(stop_token_ids=(7,), ignore_eos=True)) == {7}


@pytest.mark.parametrize("prefix", [None, learned_prefix("llama", 5)])
def test_scores_are_the_sums_of_the_tokens_own(engine, prefix):
    request = make_request(6, 1, prefix, max_tokens=6)
    for beam in beam_search(engine, request, 3, 0.5):
        rows = reference_logits("llama", request, beam.token_ids[:-1])[-6:].double().log_softmax(-1)
        total = float(rows.gather(1, torch.tensor(beam.token_ids)[:, None]).sum())
        assert beam.logprob == pytest.approx(total, abs=1e-4)
        assert beam.score == pytest.approx(beam.logprob / 6**0.5)


def test_one_beam_is_greedy(engine):
    request = make_request(9, 5, learned_prefix("llama", 3), max_tokens=10)
    ((beam,), (chunks,)) = (beam_search(engine, request, 1), engine.generate([request]))
    assert beam == Beam(tuple(t for chunk in chunks for t in chunk.token_ids), beam.logprob, beam.logprob / 10, False)


def test_beams_reuse_the_cache(engine):
    before = engine.statistics()
    beam_search(engine, make_request(100, 8, max_tokens=10), 3)
    after = engine.statistics()
    # 96 of the 100 tokens fill their pages in the first round.
    assert after["tokens_run"] - before["tokens_run"] <= 100 + 9 * 3 * 16


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": 0.7},
        {"top_p": 0.5},
        {"seed": 1},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"logit_bias": {1: 2.0}},
        {"min_tokens": 3},
        {"stop": ("a",)},
        {"logprobs": 2},
        {"constraint": Constraint.regex("a"), "ignore_eos": False},
    ],
)
def test_unsupported_params_are_refused_by_name(engine, option):
    with pytest.raises(UnsupportedOption, match=f"beam search takes no {next(iter(option))}"):
        beam_search(engine, make_request(3, **option), 2)


def test_invalid_requests_are_refused_before_the_first_step(engine):
    for width in (0, 20):
        with pytest.raises(UsageError, match=f"width must be between 1 and 19 beams, got {width}"):
            beam_search(engine, make_request(3, stop_token_ids=(7,)), width)
    steps = engine.statistics()["steps"]
    with pytest.raises(PromptTooLong, match="ask for at most 253 tokens"):
        beam_search(engine, make_request(3, max_tokens=300), 2)
    assert engine.statistics()["steps"] == steps
    with Engine(tiny_model("bert"), cache_bytes=1 << 20) as encoder, pytest.raises(UnsupportedModel):
        beam_search(encoder, make_request(3), 2)


def test_a_beam_that_fails_is_an_error(engine):
    broken = replace(learned_prefix("llama", 5), values=tuple(v * torch.nan for v in learned_prefix("llama", 5).values))
    with pytest.raises(EngineError, match="no finite logits"):
        beam_search(engine, Request(random_ids(3, 0), broken, 5), 2)
