"""Sampling: exact probabilities, repeatable by seed whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import learned_prefix, make_request, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import SamplingParams
from foreword.engine import sampling

DRAWS = 4000
CHI_SQUARE = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 9: 33.7, 19: 50.8}
"""Exceeded by chance once in 10,000 runs, by degrees of freedom (scipy.stats.chi2.isf)."""
SIZE = 20


def row(seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def exact(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities by the book: in float64, one token after another."""
    probs = (logits.double() / params.temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda token: -float(probs[token]))
    order = order[: params.top_k] if params.top_k else order
    total, kept, mass = sum(float(probs[token]) for token in order), [], 0.0
    for token in order:
        if mass >= params.top_p:
            break
        kept.append(token)
        mass += float(probs[token]) / total
    found = torch.zeros_like(probs)
    found[kept] = probs[kept]
    return found / found.sum()


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1e-300, 0.05, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 4, 19, 20, 100]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(params=params, seed=st.integers(0, 1000))
def test_allowed_probabilities_are_exact(params, seed):
    found = torch.from_numpy(sampling.filtered_probs(row(seed).numpy(), params)).double()
    torch.testing.assert_close(found, exact(row(seed), params), atol=1e-6, rtol=1e-4)


def test_a_flat_nucleus_wider_than_the_quick_look_is_exact():
    flat = torch.linspace(0, 1e-3, 5000)
    params = SamplingParams(temperature=1.0, top_p=0.8)
    found = torch.from_numpy(sampling.filtered_probs(flat.numpy(), params))
    assert (found > 0).sum() == (exact(flat, params) > 0).sum() > 1024
    torch.testing.assert_close(found.double(), exact(flat, params), atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(
    ("params", "freedom"),
    [
        (SamplingParams(temperature=1.0), 19),
        (SamplingParams(temperature=2.5, top_k=10), 9),
        (SamplingParams(temperature=0.7, top_k=5), 4),
        (SamplingParams(temperature=1.0, top_p=0.8), None),
        (SamplingParams(temperature=1.5, top_k=6, top_p=0.9), None),
    ],
)
def test_draws_follow_the_exact_probabilities(params, freedom):
    logits, source = row(7) / 2, np.random.default_rng(5)
    drawn = torch.tensor([sampling.sample_token(logits.numpy(), params, source) for _ in range(DRAWS)])
    counts = torch.bincount(drawn, minlength=SIZE).double()
    expected = exact(logits, params) * DRAWS
    inside = expected > 0
    assert counts[~inside].sum() == 0
    assert expected[inside].min() >= 5, "too rare for a chi-square test"
    found = int(inside.sum()) - 1
    assert freedom in (None, found)
    bound = next(bound for degrees, bound in CHI_SQUARE.items() if degrees >= found)
    assert float(((counts - expected)[inside] ** 2 / expected[inside]).sum()) < bound


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_very_cold_temperature_is_greedy(temperature):
    params = SamplingParams(temperature=temperature)
    drawn = {sampling.sample_token(row().numpy(), params, np.random.default_rng(0)) for _ in range(20)}
    assert drawn == {int(row().argmax())}


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_any_integer_of_64_bits_is_a_seed(seed):
    params = SamplingParams(temperature=1.0, seed=seed)
    first, second = sampling.make_generator(params), sampling.make_generator(params)
    assert first is not None
    assert second is not None
    assert first.random(4).tolist() == second.random(4).tolist()


def test_greedy_is_the_default():
    assert sampling.make_generator(SamplingParams()) is None


def test_without_a_seed_answers_differ():
    engine = manual_engine("llama")
    streams = [engine.submit(make_request(4, temperature=2.0, max_tokens=20)) for _ in range(3)]
    run_until_idle(engine)
    assert len({tuple(tokens_of(stream)) for stream in streams}) == 3


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_seeded_answer_is_the_same_alone_and_in_a_crowd(family):
    prefix = learned_prefix(family, 9)
    asked = [make_request(5, seed, prefix, temperature=1.2, top_p=0.95, top_k=50, seed=seed) for seed in range(4)]
    alone = []
    for request in asked:
        engine = manual_engine(family)
        stream = engine.submit(request)
        run_until_idle(engine)
        alone.append(tokens_of(stream))
    engine = manual_engine(family, step_tokens=16, max_batch=5)
    crowd = [engine.submit(make_request(17, 50 + seed, temperature=1.0, seed=seed)) for seed in range(3)]
    crowd.append(engine.submit(make_request(3, 60)))
    engine.step()
    streams = [engine.submit(request) for request in reversed(asked)]
    run_until_idle(engine)
    assert [tokens_of(stream) for stream in reversed(streams)] == alone
    assert all(tokens_of(stream) for stream in crowd)
