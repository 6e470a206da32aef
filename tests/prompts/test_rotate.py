"""Keys moved to other positions are those that the model itself makes there; what cannot be moved is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foreword.attention import RaggedAttention
from foreword.core import Batch, Front, KVPrefix
from foreword.errors import UnsupportedModel, UsageError
from foreword.models import LanguageModel, load_model
from foreword.prompts import rotate as rotating
from foreword.prompts.lower import empty_prefix, lower_tokens
from foreword.prompts.rotate import rotate, rotate_every_two, rotate_half, rotations
from interop.families import deep, family
from tiny_models import save_tiny

TEXT = tuple(range(60, 71))
REQUEST = tuple(range(90, 97))
TURNING = ("llama", "qwen3", "mistral", "gemma3", "gpt_neox", "phi3", "glm", "glm4", "cohere", "smollm3", "yarn")


def keys_at(lm: LanguageModel, position: int) -> list[Tensor]:
    """The model's own keys of `TEXT` from a position on, ``[kv_heads, P, key_dim]`` a layer."""
    keys: dict[int, Tensor] = {}
    batch = Batch((len(TEXT),), (None,), (replace(empty_prefix(lm), offset=position),), torch.tensor(TEXT))
    attend = RaggedAttention(batch, lambda layer, key, _: keys.update({layer: key}))
    lm.logits(batch, torch.tensor([0]), attend=attend)
    return [keys[layer] for layer in sorted(keys)]


def logits(lm: LanguageModel, prefix: KVPrefix) -> Tensor:
    return lm.logits(Batch.from_rows(Front(prefix), [REQUEST]), torch.arange(len(REQUEST)))


@pytest.mark.parametrize("name", TURNING)
@pytest.mark.parametrize("by", [1, 13, 37])
def test_moved_keys_are_the_models_own_at_the_new_positions(name, by):
    lm = family(name)
    moved = rotate(lm, lower_tokens(lm, TEXT), by)
    for found, expected in zip(moved.keys, keys_at(lm, by), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert moved.token_ids is None
    back = rotate(lm, moved, -by)
    for found, expected in zip(back.keys, lower_tokens(lm, TEXT).keys, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TURNING)
def test_prefix_and_request_moved_together_give_the_same_logits(name):
    lm = family(name)
    prefix = replace(lower_tokens(lm, TEXT), token_ids=None)
    moved = replace(rotate(lm, prefix, 29), offset=prefix.offset + 29)
    torch.testing.assert_close(logits(lm, moved), logits(lm, prefix), atol=2e-5, rtol=0)
    assert (logits(lm, replace(moved, keys=prefix.keys)) - logits(lm, prefix)).abs().max() > 1e-3


def test_every_layer_turns_in_its_own_way():
    local, whole, _ = (rotation for rotation in rotations(family("gemma3")) if rotation is not None)
    assert not torch.allclose(local.frequencies, whole.frequencies)
    assert {rotation.layout for rotation in rotations(family("glm")) if rotation} == {rotate_every_two}
    assert [rotation and rotation.layout for rotation in rotations(family("smollm3"))] == [
        rotate_half,
        None,
        rotate_half,
    ]


def test_each_position_may_move_by_itself():
    """Keys cut out of a longer text, from places 3, 4 and 9, to the front."""
    lm, kept = family("llama"), (3, 4, 9)
    prefix = lower_tokens(lm, TEXT)
    cut = KVPrefix(
        prefix.model,
        tuple(key[:, list(kept)] for key in prefix.keys),
        tuple(value[:, list(kept)] for value in prefix.values),
        offset=3,
    )
    moved = rotate(lm, cut, [new - old for new, old in enumerate(kept)])
    one_by_one = [rotate(lm, prefix, new - old).keys[1][:, old] for new, old in enumerate(kept)]
    torch.testing.assert_close(moved.keys[1], torch.stack(one_by_one, dim=1))
    with pytest.raises(UsageError, match="a prefix of 3 positions needs as many shifts, got 2"):
        rotate(lm, cut, [1, 2])


def test_nothing_moves_by_nothing():
    prefix = lower_tokens(family("gpt2"), TEXT)
    assert rotate(family("gpt2"), prefix, 0) is prefix


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "roberta"])
def test_learned_absolute_positions_are_refused(name):
    lm = family(name)
    zeros = tuple(torch.zeros(s.kv_heads, 2, s.key_dim) for s in lm.identity.layers)
    with pytest.raises(UnsupportedModel, match=f"tiny-{name} has learned absolute positions"):
        rotate(lm, KVPrefix(lm.identity, zeros, zeros, offset=2), 2)


@pytest.mark.parametrize(
    ("name", "wrong"), [("llama", rotate_every_two), ("glm", rotate_half), ("gpt_neox", rotate_every_two)]
)
def test_a_layout_that_is_not_the_models_is_refused_and_not_assumed(name, wrong, monkeypatch):
    lm = family(name)
    monkeypatch.setattr(rotating, "rotate_half", wrong)
    monkeypatch.setattr(rotating, "rotate_every_two", wrong)
    with pytest.raises(UnsupportedModel, match=rf"layer 0 of tiny-{name} does not turn its keys as any of its"):
        rotate(lm, lower_tokens(lm, TEXT), 5)


@pytest.mark.parametrize(("name", "kind"), [("dynamic", "dynamic"), ("longrope", "longrope")])
def test_frequencies_that_change_with_the_batch_are_refused_beyond_the_original_length(name, kind):
    lm = family(name)
    prefix = lower_tokens(lm, TEXT)
    near = rotate(lm, prefix, 30)
    for found, expected in zip(near.keys, keys_at(lm, 30), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    with pytest.raises(UsageError, match=rf"changes its frequencies \({kind}\) beyond position {lm.context}, so keys"):
        rotate(lm, prefix, lm.context - len(TEXT) + 1)


def test_rounding_that_adds_up_over_layers_is_not_mistaken_for_another_rotation():
    assert {rotation and rotation.layout for rotation in rotations(deep())} == {rotate_half}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_measured_too(dtype, tmp_path):
    lm = load_model(str(save_tiny("qwen3", tmp_path)), dtype=dtype)
    moved = rotate(lm, lower_tokens(lm, TEXT), 13)
    assert moved.keys[0].dtype == lm.dtype
    for found, expected in zip(moved.keys, keys_at(lm, 13), strict=True):
        error = (found.float() - expected.float()).square().mean().sqrt()
        assert error < 16 * torch.finfo(lm.dtype).eps * expected.float().square().mean().sqrt()
