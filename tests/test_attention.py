"""Prefixes through the attention function against Transformers' own caches and joined texts, in float32."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention

from foreword import attention
from foreword.attention import ATTN_IMPLEMENTATION, RaggedAttention
from foreword.core import Batch, KVPrefix
from foreword.errors import TrainingError
from foreword.models.ways import wrap_model
from tiny_models import CAUSAL, ENCODERS, VOCABULARY, byte_tokenizer, tiny_config, tiny_model

TOLERANCE = 1e-5


def ids(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY - 44, (n,), generator=generator) for n in lengths]


def random_prefix(lm, length: int, seed: int = 0, grad: bool = False) -> KVPrefix:
    generator = torch.Generator().manual_seed(seed)

    def tensors(width: str):
        return tuple(
            torch.randn(s.kv_heads, length, getattr(s, width), generator=generator).requires_grad_(grad)
            for s in lm.identity.layers
        )

    return KVPrefix(lm.identity, tensors("key_dim"), tensors("value_dim"), offset=length)


def stock(lm, token_ids, prefix: KVPrefix | None = None):
    """Logits ``[T, vocab]`` by Transformers alone."""
    lm.model.set_attn_implementation("eager")
    try:
        cache = None
        if prefix is not None:
            cache = DynamicCache(config=lm.model.config) if lm.causal else DynamicCache()
            for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.update(key[None], value[None], layer)
        start = prefix.offset if prefix is not None else 0
        positions = torch.arange(start, start + len(token_ids))[None] + lm.first_position
        return lm.model(input_ids=token_ids[None], position_ids=positions, past_key_values=cache).logits[0]
    finally:
        lm.model.set_attn_implementation(ATTN_IMPLEMENTATION)


def lowered(lm, token_ids) -> KVPrefix:
    keys, values = {}, {}

    def collect(layer, key, value):
        keys[layer], values[layer] = key, value

    batch = Batch((len(token_ids),), (None,), (None,), token_ids)
    lm.logits(batch, torch.tensor([0]), attend=RaggedAttention(batch, collect))
    layers = sorted(keys)
    return KVPrefix(lm.identity, tuple(keys[i] for i in layers), tuple(values[i] for i in layers), len(token_ids))


@pytest.mark.parametrize("family", CAUSAL + ENCODERS)
@pytest.mark.parametrize("length", [3, 17])
def test_learned_prefix_equals_past_key_values(family, length):
    # 17 is longer than the windows of the tiny Mistral (6) and Gemma 3 (8), 3 is shorter.
    lm = tiny_model(family)
    prefix = random_prefix(lm, length)
    texts = ids(9, 4, 14, 1)
    batch = Batch(tuple(map(len, texts)), (None,) * 4, (prefix, prefix, None, prefix), torch.cat(texts))
    logits = lm.logits(batch, torch.arange(sum(map(len, texts)))).split(list(map(len, texts)))
    for text, found, used in zip(texts, logits, batch.prefixes, strict=True):
        torch.testing.assert_close(found, stock(lm, text, used), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("length", [3, 17])
def test_static_prefix_equals_joined_text(family, length):
    lm = tiny_model(family)
    (front,), texts = ids(length, seed=1), ids(12, 5)
    prefix = lowered(lm, front)
    batch = Batch((12, 5), (None, None), (prefix, prefix), torch.cat(texts))
    logits = lm.logits(batch, torch.arange(17)).split([12, 5])
    for text, found in zip(texts, logits, strict=True):
        joined = stock(lm, torch.cat([front, text]))[length:]
        torch.testing.assert_close(found, joined, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_row_that_continues_another_equals_the_joined_text(family):
    # A tree of depth three: a prompt, two questions behind it, two words behind the first question.
    lm = tiny_model(family)
    prefix = random_prefix(lm, 4)
    prompt, first, second, word, other = ids(10, 6, 3, 2, 1)
    rows = [prompt, first, second, word, other]
    batch = Batch(tuple(map(len, rows)), (None, 0, 0, 1, 1), (prefix, None, None, None, None), torch.cat(rows))
    logits = lm.logits(batch, torch.arange(22)).split(list(map(len, rows)))
    paths = [[prompt], [prompt, first], [prompt, second], [prompt, first, word], [prompt, first, other]]
    for path, found in zip(paths, logits, strict=True):
        expected = stock(lm, torch.cat(path), prefix)[-len(path[-1]) :]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
def test_soft_tokens_equal_inputs_embeds(family):
    lm = tiny_model(family)
    soft = torch.randn(5, lm.identity.hidden_size, generator=torch.Generator().manual_seed(3))
    (text,) = ids(8)
    batch = Batch(
        (5, 8),
        (None, 0),
        (None, None),
        torch.cat([torch.zeros(5, dtype=torch.long), text]),
        soft,
        torch.arange(5),
    )
    found = lm.logits(batch, torch.arange(5, 13))
    lm.model.set_attn_implementation("eager")
    embeds = torch.cat([soft, lm.model.get_input_embeddings()(text)])[None]
    expected = lm.model(inputs_embeds=embeds, use_cache=False).logits[0, 5:]
    lm.model.set_attn_implementation(ATTN_IMPLEMENTATION)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def gradients(lm, prefix: KVPrefix) -> list[torch.Tensor]:
    texts = ids(9, 4, 14)
    batch = Batch((9, 4, 14), (None,) * 3, (prefix,) * 3, torch.cat(texts))
    loss = lm.logits(batch, torch.tensor([8, 12, 26])).float().logsumexp(-1).sum()
    return list(torch.autograd.grad(loss, [*prefix.keys, *prefix.values]))


class Checkpointing:
    """Gradient checkpointing with the layers, and only the layers, in training mode."""

    def __init__(self, lm, reentrant: bool) -> None:
        self.model, self.reentrant = lm.model, reentrant

    def layers(self):
        return [m for m in self.model.modules() if hasattr(m, "gradient_checkpointing")]

    def __enter__(self):
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": self.reentrant})
        for layer in self.layers():
            layer.training = True

    def __exit__(self, *_):
        self.model.gradient_checkpointing_disable()
        self.model.eval()


@pytest.mark.parametrize("family", CAUSAL + ENCODERS)
def test_same_gradients_with_and_without_checkpointing(family):
    lm = tiny_model(family)
    prefix = random_prefix(lm, 5, grad=True)
    plain = gradients(lm, prefix)
    with Checkpointing(lm, reentrant=False):
        checkpointed = gradients(lm, prefix)
    assert all(gradient.abs().max() > 0 for gradient in plain)
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_reentrant_checkpointing_is_refused():
    lm = tiny_model("llama")
    prefix = random_prefix(lm, 5, grad=True)
    with Checkpointing(lm, reentrant=True), pytest.raises(TrainingError, match="use_reentrant=False"):
        gradients(lm, prefix)


@pytest.mark.parametrize("family", CAUSAL)
def test_gradients_equal_finite_differences_of_stock_transformers(family):
    """Each layer's keys and values move the logits as they do through Transformers' cache."""
    lm = tiny_model(family)
    prefix = random_prefix(lm, 5, grad=True)
    (text,) = ids(7)
    batch = Batch((7,), (None,), (prefix,), text)
    ours = torch.autograd.grad(lm.logits(batch, torch.arange(7)).square().sum(), [*prefix.keys, *prefix.values])
    theirs = torch.autograd.grad(stock(lm, text, prefix).square().sum(), [*prefix.keys, *prefix.values])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_layers_of_different_shapes():
    """A model whose second layer keeps four key heads where the others keep two."""
    attention.register()
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), attn_implementation=ATTN_IMPLEMENTATION)
    wide = tiny_config("llama")
    wide.num_key_value_heads = 4
    model.model.layers[1].self_attn = LlamaAttention(wide, layer_idx=1)
    model.model.layers[1].self_attn.config = model.config  # one switch between our attention and the stock one
    lm = wrap_model(model.eval().requires_grad_(False), byte_tokenizer(), name="mixed")
    assert [shape.kv_heads for shape in lm.identity.layers] == [2, 4, 2]
    prefix = random_prefix(lm, 4)
    (text,) = ids(9)
    found = lm.logits(Batch((9,), (None,), (prefix,), text), torch.arange(9))
    torch.testing.assert_close(found, stock(lm, text, prefix), atol=TOLERANCE, rtol=0)
