"""Attention over two sets of keys, merged by log-sum-exp, against one plain softmax over both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.dense_attention import (
    MAX_MATH_LENGTH,
    AttentionMask,
    AttentionSpec,
    apply_sinks,
    grouped_query_attention,
    inference_attention,
    inference_attention_with_lse,
    merge_attn_states,
)
from foreword.errors import TrainingError

LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def plain(query, key, value, mask, scale):
    """One softmax in float64, heads repeated; rows that may look nowhere are zero with a log-sum-exp of -inf."""
    group = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(group, 1), value.double().repeat_interleave(group, 1)
    scores = (query.double() @ key.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).nan_to_num() @ value, scores.logsumexp(-1)


def tensors(rows, heads, kv_heads, length, keys, key_dim, value_dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return (
        normal(rows, heads, length, key_dim),
        normal(rows, kv_heads, keys, key_dim),
        normal(rows, kv_heads, keys, value_dim),
    )


cases = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 3),
        "kv_heads": st.sampled_from([1, 2]),
        "group": st.sampled_from([1, 3]),
        "length": st.integers(1, 5),
        "first": st.integers(1, 9),
        "second": st.integers(1, 40),
        "dims": st.sampled_from([(16, 16), (16, 8), (8, 24), (64, 64)]),
        "dtype": st.sampled_from(sorted(LIMITS, key=str)),
        "masked": st.sampled_from(["no", "shared", "rows"]),
        "seed": st.integers(0, 10_000),
    }
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(case=cases)
def test_merged_halves_equal_one_softmax(case):
    heads, cut, dtype = case["kv_heads"] * case["group"], case["first"], case["dtype"]
    keys = cut + case["second"]
    query, key, value = tensors(
        case["rows"], heads, case["kv_heads"], case["length"], keys, *case["dims"], dtype, case["seed"]
    )
    mask = None
    if case["masked"] != "no":
        rows = 1 if case["masked"] == "shared" else case["rows"]
        generator = torch.Generator().manual_seed(case["seed"])
        mask = torch.rand(rows, 1, case["length"], keys, generator=generator) < 0.4
        mask[..., :cut] &= torch.rand(rows, 1, case["length"], 1, generator=generator) < 0.5
        mask[..., -1] = True  # a request always sees its own token; the first half may be all masked
    scale = key.shape[-1] ** -0.5
    front = None if mask is None else mask[..., :cut]
    own = None if mask is None else mask[..., cut:]
    masks = [part if part is None else AttentionMask(part) for part in (front, own)]
    with torch.no_grad():
        first = inference_attention_with_lse(query, key[:, :, :cut], value[:, :, :cut], masks[0], AttentionSpec(scale))
        second = inference_attention_with_lse(query, key[:, :, cut:], value[:, :, cut:], masks[1], AttentionSpec(scale))
        merged = merge_attn_states(*second, *first)
    for (out, lse), part, visible in ((first, slice(0, cut), front), (second, slice(cut, None), own)):
        expected, expected_lse = plain(query, key[:, :, part], value[:, :, part], visible, scale)
        torch.testing.assert_close(out.double(), expected, atol=LIMITS[dtype], rtol=LIMITS[dtype])
        torch.testing.assert_close(lse.double(), expected_lse, atol=LIMITS[dtype], rtol=LIMITS[dtype])
        assert lse.dtype == torch.float32
    expected, _ = plain(query, key, value, mask, scale)
    assert merged.dtype == dtype
    torch.testing.assert_close(merged.double(), expected, atol=LIMITS[dtype], rtol=LIMITS[dtype])
    grouped = grouped_query_attention(query, key, value, mask, AttentionSpec(scale))
    torch.testing.assert_close(grouped.double(), expected, atol=LIMITS[dtype], rtol=LIMITS[dtype])


@pytest.mark.parametrize("sees", ["all", "causal", "half blind"])
@pytest.mark.parametrize("scale", [0.125, 0.09])
@pytest.mark.parametrize("rows", [1, 3])
def test_many_scores_in_bfloat16_are_near_one_softmax(rows, scale, sees, monkeypatch):
    """Scores of up to 4 are rounded by 2 ** -7 at most, so a weight is off by 1.6 % at most."""
    length, keys = 64, 300
    query, key, value = tensors(rows, 6, 2, length, keys, 64, 64, torch.bfloat16, 6)
    mask = torch.ones(1, 1, length, keys, dtype=torch.bool)
    if sees != "all":
        mask = mask.tril(keys - length)
    if sees == "half blind":
        mask[:, :, : length // 2] = False
    masks = None if sees == "all" else AttentionMask(mask)
    with torch.no_grad():
        out, lse = inference_attention_with_lse(query, key, value, masks, AttentionSpec(scale))
        assert torch.equal(inference_attention(query, key, value, masks, AttentionSpec(scale)), out)
        monkeypatch.setattr("foreword.dense_attention.MIN_BF16_SCORES", 1 << 60)
        flash = inference_attention_with_lse(query, key, value, masks, AttentionSpec(scale))
    assert not torch.equal(out, flash[0]), "both went the same way"
    expected, expected_lse = plain(query, key, value, mask, scale)
    torch.testing.assert_close(out.double(), expected, atol=LIMITS[torch.bfloat16], rtol=LIMITS[torch.bfloat16])
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-2, rtol=1e-3)
    assert lse.dtype == torch.float32


def test_a_part_that_sees_nothing_weighs_nothing():
    query, key, value = tensors(1, 4, 2, 3, 6, 16, 16, torch.float32, 0)
    nowhere = torch.zeros(1, 1, 3, 6, dtype=torch.bool)
    with torch.no_grad():
        out, lse = inference_attention_with_lse(query, key, value, AttentionMask(nowhere), AttentionSpec(0.25))
        full = inference_attention_with_lse(query, key, value, None, AttentionSpec(0.25))
        merged = merge_attn_states(*full, out, lse)
    assert (lse == float("-inf")).all()
    assert (out == 0).all()
    assert torch.equal(merged, full[0])


def test_far_apart_scores_neither_overflow_nor_vanish():
    query, key, value = tensors(1, 2, 1, 2, 5, 16, 16, torch.float32, 1)
    for factor in (1e-4, 200.0):
        with torch.no_grad():
            second = inference_attention_with_lse(
                query, key[:, :, 2:] * factor, value[:, :, 2:], None, AttentionSpec(1.0)
            )
            first = inference_attention_with_lse(query, key[:, :, :2], value[:, :, :2], None, AttentionSpec(1.0))
            merged = merge_attn_states(*second, *first)
        both = torch.cat([key[:, :, :2], key[:, :, 2:] * factor], 2)
        expected, _ = plain(query, both, value, None, 1.0)
        torch.testing.assert_close(merged.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_it_refuses_to_run_with_gradients(place):
    parts = dict(zip(("query", "key", "value"), tensors(1, 2, 1, 2, 5, 16, 16, torch.float32, 2), strict=True))
    parts[place].requires_grad_()
    with pytest.raises(TrainingError, match="inference only"):
        inference_attention_with_lse(*parts.values(), None, AttentionSpec(0.25))
    with torch.no_grad():
        inference_attention_with_lse(*parts.values(), None, AttentionSpec(0.25))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("learned", ["query", "key", "value", "all"])
def test_short_rows_have_the_gradients_of_finite_differences(masked, learned):
    parts = [part.double() for part in tensors(2, 4, 2, 3, 5, 4, 6, torch.float32, 3)]
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)[None, None] if masked else None
    for name, part in zip(("query", "key", "value"), parts, strict=True):
        part.requires_grad_(learned in (name, "all"))
    assert torch.autograd.gradcheck(lambda *given: grouped_query_attention(*given, mask, AttentionSpec(0.5)), parts)


@pytest.mark.parametrize("length", [MAX_MATH_LENGTH, MAX_MATH_LENGTH + 1])
@pytest.mark.parametrize("dtype", sorted(LIMITS, key=str))
def test_short_and_long_rows_have_the_gradients_of_one_softmax(length, dtype):
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    parts = [part.requires_grad_() for part in tensors(1, 4, 2, length, length, 16, 16, dtype, 4)]
    wide = [part.detach().double().requires_grad_() for part in parts]
    found = torch.autograd.grad(
        grouped_query_attention(*parts, mask, AttentionSpec(0.25)).float().square().sum(), parts
    )
    expected = torch.autograd.grad(plain(*wide, mask, 0.25)[0].square().sum(), wide)
    for one, other in zip(found, expected, strict=True):
        limit = LIMITS[dtype] * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, atol=limit, rtol=LIMITS[dtype])


@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("group", [1, 3])
def test_squashed_scores_and_sinks(group, softcap, sunk):
    """The merged halves and the grouped product against one softmax with a further column."""
    query, key, value = (part.double() for part in tensors(2, 2 * group, 2, 3, 9, 8, 8, torch.float32, 5))
    sinks = torch.linspace(-1, 2, 2 * group) if sunk else None
    spec = AttentionSpec(0.5, softcap, sinks)
    scores = 0.5 * query @ key.repeat_interleave(group, 1).mT
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    column = torch.full((1, 2 * group, 1, 1), -torch.inf) if sinks is None else sinks.view(1, -1, 1, 1)
    joined = torch.cat([scores, column.expand(2, -1, 3, -1).double()], -1)
    expected = joined.softmax(-1)[..., :-1] @ value.repeat_interleave(group, 1)
    torch.testing.assert_close(grouped_query_attention(query, key, value, None, spec), expected)
    first = inference_attention_with_lse(query, key[:, :, :4], value[:, :, :4], None, spec)
    second = inference_attention_with_lse(query, key[:, :, 4:], value[:, :, 4:], None, spec)
    merged = merge_attn_states(*second, *first)
    for row in range(2):
        lse = torch.logaddexp(first[1][row], second[1][row])
        found = apply_sinks(merged[row], lse, sinks)
        torch.testing.assert_close(found, expected[row], atol=1e-5, rtol=1e-5)


def test_squashed_scores_and_sinks_have_the_gradients_of_finite_differences():
    parts = [part.double().requires_grad_() for part in tensors(2, 4, 2, 3, 5, 4, 6, torch.float32, 3)]
    spec = AttentionSpec(0.5, 1.5, torch.linspace(-1, 1, 4).double())
    assert torch.autograd.gradcheck(lambda *given: grouped_query_attention(*given, None, spec), parts)
