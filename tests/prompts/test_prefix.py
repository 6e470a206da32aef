"""Keys and values of every layer: their layout, the networks that they are learned through, the first position."""

from __future__ import annotations

import pytest
import torch

from foreword.core import KVPrefix
from foreword.errors import PromptTooLong, UsageError
from foreword.models import LanguageModel
from foreword.models.activations import activations
from foreword.prompts.init import from_text, random_values
from foreword.prompts.lower import lower, lower_tokens
from foreword.prompts.prefix import PrefixValues, flatten_prefix, unflatten_prefix
from foreword.prompts.registry import get_method
from tiny_models import CAUSAL, ENCODERS, tiny_model

THROUGH = [("p-tuning-v2", {}), ("p-tuning-v2", {"projection": True}), ("prefix-tuning", {})]


def prefix_encoder(lm: LanguageModel, name: str, length: int = 5, **options) -> PrefixValues:
    start = from_text(lm, "Answer: ")(length, torch.Generator().manual_seed(3))
    return get_method(name, **options).encoder(lm, start)


def tensors(prefix: KVPrefix) -> tuple[torch.Tensor, ...]:
    return (*prefix.keys, *prefix.values)


@pytest.mark.parametrize("family", CAUSAL)
def test_rows_hold_all_layers_of_a_position(family):
    lm = tiny_model(family)
    prefix = lower_tokens(lm, range(50, 57))
    rows = flatten_prefix(prefix)
    again = unflatten_prefix(rows, prefix.model, 7, "prefix")
    assert rows.shape == (7, sum(s.kv_heads * (s.key_dim + s.value_dim) for s in lm.identity.layers))
    assert all(torch.equal(a, b) for a, b in zip(tensors(prefix), tensors(again), strict=True))
    shape = lm.identity.layers[0]
    assert torch.equal(rows[2, : shape.key_dim], prefix.keys[0][0, 2])


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize(("name", "options"), THROUGH)
def test_learning_starts_at_the_activations_of_the_text(family, name, options):
    lm = tiny_model(family)
    made = lower(lm, prefix_encoder(lm, name, **options))
    expected = activations(lm, lm.tokenizer("wer: ").input_ids)
    assert all(torch.equal(a, b) for a, b in zip(tensors(made), tensors(expected), strict=True))


@pytest.mark.parametrize("family", ENCODERS)
def test_activations_of_an_encoder_are_those_of_the_text_alone(family):
    """As plain Transformers would compute them: the inputs of the attention's own key layer."""
    lm = tiny_model(family)
    ids = lm.tokenizer("words").input_ids
    layer = next(module for name, module in lm.model.named_modules() if name.endswith("layer.1.attention.self"))
    seen = []
    hook = layer.key.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    try:
        lm.model(torch.tensor([ids]), attention_mask=None, foreword=_plain(lm, len(ids)))
    finally:
        hook.remove()
    found = activations(lm, ids).keys[1]
    torch.testing.assert_close(found.transpose(0, 1).flatten(1), seen[0], atol=1e-5, rtol=0)


def _plain(lm: LanguageModel, length: int):
    from foreword.attention import ForwardContext, RaggedAttention
    from foreword.core import Batch

    return ForwardContext(RaggedAttention(Batch((length,), (None,), (None,), torch.zeros(length))), lm.layers)


def test_a_text_longer_than_the_model_is_no_start():
    with pytest.raises(PromptTooLong, match="the context of tiny-bert is 256; shorten it"):
        activations(tiny_model("bert"), [70] * 256)


@pytest.mark.parametrize(("name", "options"), THROUGH)
def test_the_first_position_stays_as_it_is(name, options):
    lm = tiny_model("llama")
    encoder = prefix_encoder(lm, name, freeze_first=True, **options)
    before = lower(lm, encoder)
    encoder.front().prefix.keys[0].square().sum().backward()
    torch.optim.SGD(encoder.parameters(), lr=1.0).step()
    after = lower(lm, encoder)
    for a, b in zip(before.keys[:1], after.keys[:1], strict=True):
        assert torch.equal(a[:, 0], b[:, 0])
        assert not torch.equal(a[:, 1:], b[:, 1:])


def test_the_first_position_is_no_parameter():
    lm = tiny_model("llama")
    count = [
        sum(p.numel() for p in prefix_encoder(lm, "p-tuning-v2", freeze_first=f).parameters()) for f in (False, True)
    ]
    assert count == [5 * 3 * 2 * 2 * 16, 4 * 3 * 2 * 2 * 16]


@pytest.mark.parametrize(("name", "options"), THROUGH[1:])
def test_how_many_numbers_an_mlp_learns(name, options):
    width, hidden, row = 48, 512, 3 * 2 * 2 * 16
    numbers = 5 * width + width * hidden + hidden + hidden * row + row
    encoder = prefix_encoder(tiny_model("llama"), name, **options)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == numbers


def test_what_the_first_position_cannot_be_kept_of():
    lm = tiny_model("llama")
    random = random_values(5, torch.Generator())
    with pytest.raises(UsageError, match="--freeze-first would freeze random values"):
        get_method("prefix-tuning", freeze_first=True).encoder(lm, random)
    with pytest.raises(UsageError, match="--freeze-first leaves nothing to learn of one virtual token"):
        prefix_encoder(lm, "p-tuning-v2", 1, freeze_first=True)
