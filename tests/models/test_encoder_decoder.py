"""Encoder-decoders: loaded with their own attention, run on ragged batches, and decoded token by token."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, LEDConfig, M2M100Config, T5Config, T5ForConditionalGeneration

from foreword import attention
from foreword.core import Batch, Front, KVPrefix
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import UnsupportedModel, UsageError
from foreword.models import load_model
from foreword.models.activations import activations
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.models.encoder_decoder_padding import pads_in_front
from foreword.models.ways import wrap_model
from foreword.prompts.lower import lower, lower_tokens
from tiny_encoder_decoders import (
    BART,
    CONFIGS,
    FAMILIES,
    PAD,
    learned_prefix,
    random_model,
    save_tiny,
    tiny_encoder_decoder,
)
from tiny_models import byte_tokenizer, tiny_model

SOFT = torch.linspace(-1, 1, 3 * 48).sin().reshape(3, 48)


def stock_logits(lm, text, written, soft=SOFT):
    """Logits ``[1 + written, vocab]`` by Transformers alone, for one text without padding."""
    embedded = torch.cat([soft, lm.model.get_input_embeddings()(torch.tensor(text))])[None]
    ids = torch.tensor([[PAD, *written]])
    return lm.model(inputs_embeds=embedded, decoder_input_ids=ids, use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_with_its_own_attention(family, tmp_path):
    lm = load_model(str(save_tiny(family, tmp_path)))
    assert isinstance(lm, EncoderDecoder)
    # Weights are fingerprinted as they are stored: tied ones once.
    assert replace(lm.identity, weights="") == replace(tiny_encoder_decoder(family).identity, weights="")
    assert lm.model.config._attn_implementation != attention.ATTN_IMPLEMENTATION
    parts = Counter(layer.part for layer in lm.identity.layers)
    assert parts == {"": 3, "cross-attention": 3, "encoder": 2}
    assert len(lm.identity.decoder_only.layers) == 3
    assert lm.proof is not None
    stored = random_model(family).state_dict()
    assert lm.model.state_dict().keys() == stored.keys()  # it has no towers that a text would not run through
    assert lm.proof.difference < 1e-5


def test_one_that_does_not_say_where_it_starts_is_refused(tmp_path):
    config = T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"T5For.* does not say .*; set decoder_start_token_id in config.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_changes_embeddings_on_their_way_is_refused(family):
    model = random_model(family)
    encoder = model.get_encoder()
    encoder.register_forward_pre_hook(
        lambda _, args, given: (
            args,
            {
                name: 1.1 * value if name == "inputs_embeds" and value is not None else value
                for name, value in given.items()
            },
        ),
        with_kwargs=True,
    )
    with pytest.raises(UnsupportedModel, match="does not give the same logits for embeddings as for the tokens"):
        wrap_model(model, byte_tokenizer(), name="tiny")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_the_logits_of_each_text_alone(family):
    """Two texts of different lengths with a tree behind the first: what is written shares its beginning."""
    lm = tiny_encoder_decoder(family)
    rows = [(-1, -2, -3, 5, 6, 7), (20,), (21, 22), (23,), (-1, -2, -3, 8), (24, 25)]
    batch = Batch.from_rows(Front(inner_soft=SOFT), rows, (None, 0, 1, 1, None, 4))
    found = lm.logits(batch, torch.tensor([13, 5, 6, 7, 8, 9, 14, 15]))
    first, other, second = (
        stock_logits(lm, [5, 6, 7], [20, 21, 22]),
        stock_logits(lm, [5, 6, 7], [20, 23]),
        stock_logits(lm, [8], [24, 25]),
    )
    expected = torch.cat([second[:1], first, other[2:], second[1:]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_in_front_of_answers_is_measured(family, monkeypatch):
    """T5's positions are relative; BART and its kin count them from the beginning of the cache, which is mended row by
    row; T5Gemma takes no padding there."""
    lm = tiny_encoder_decoder(family)
    assert pads_in_front(lm) is (family != "t5gemma")
    monkeypatch.setattr("foreword.models.encoder_decoder.positions_of_rows", lambda *_: nullcontext())
    assert pads_in_front(lm) is (family == "t5")


def test_soft_tokens_get_their_gradients():
    lm = tiny_encoder_decoder("t5")
    soft = SOFT.clone().requires_grad_()
    batch = Batch.from_rows(Front(inner_soft=soft), [(-1, -2, -3, 5, 6, 7), (20,), (-1, -2, -3, 8)], (None, 0, None))
    lm.logits(batch, torch.tensor([5, 6, 10])).square().sum().backward()
    alone = SOFT.clone().requires_grad_()
    (
        stock_logits(lm, [5, 6, 7], [20], alone).square().sum() + stock_logits(lm, [8], [], alone).square().sum()
    ).backward()
    torch.testing.assert_close(soft.grad, alone.grad, rtol=1e-4, atol=1e-6)
    assert soft.grad.abs().min() > 0


def wide_norm(module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """T5's norm without its own float32."""
    return module.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_get_their_gradients(family):
    """Through decoder, cross-attention and encoder: those of finite differences, in float64."""
    lm = wrap_model(random_model(family).double(), byte_tokenizer(), name="tiny")
    for module in lm.model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(wide_norm, module)
    length, step = 2, 1e-5
    drawn = learned_prefix(lm, length)
    sides = [tuple(side.double().mul(0.3).requires_grad_() for side in each) for each in (drawn.keys, drawn.values)]
    rows = [(5, 6, 7), (20, 21), (8,), (9,)]

    def loss() -> torch.Tensor:
        prefix = KVPrefix(lm.identity, *sides, offset=length)
        batch = Batch.from_rows(Front(prefix), rows, (None, 0, None, 2), lm.device)
        return lm.logits(batch, torch.tensor([2, 3, 4, 5])).square().sum()

    tensors = [tensor for side in sides for tensor in side]
    gradients = torch.autograd.grad(loss(), tensors)
    generator = torch.Generator().manual_seed(0)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * step * direction
                found.append(float(loss()))
                tensor -= sign * step * direction
        expected = (found[0] - found[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert float(gradient.abs().max()) > 0


def test_a_prefix_is_not_lost_to_checkpointing():
    lm = wrap_model(random_model("t5"), byte_tokenizer(), name="tiny")
    batch = Batch.from_rows(Front(learned_prefix(lm, 2)), [(5, 6)], device=lm.device)
    lm.model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(UsageError, match="forgets prefixes of tiny; leave out --checkpointing"):
        lm.logits(batch, torch.tensor([1]))


def test_a_prefix_of_a_text_is_what_its_layers_keep():
    """An initial prefix: of every layer the keys and values of all tokens of the text."""
    lm = tiny_encoder_decoder("bart")
    prefix = activations(lm, [5, 6, 7])
    states = lm.model.get_encoder()(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    cross = lm.model.model.decoder.layers[1].encoder_attn.k_proj(states)
    torch.testing.assert_close(prefix.keys[3 + 1].transpose(0, 1).flatten(1), cross)
    assert prefix.length == prefix.offset == 3


def test_one_whose_cache_is_not_its_tokens_writes_nothing():
    """M2M100 counts tokens that are not padding, which its start token is here."""
    model = AutoModelForSeq2SeqLM.from_config(M2M100Config(**BART))
    lm = wrap_model(model.eval().requires_grad_(False), byte_tokenizer(), name="tiny")
    assert not lm.caches
    with Engine(lm) as engine, pytest.raises(UnsupportedModel, match="so it writes no answers; have it label"):
        engine.submit(Request((5, 6)))


def test_one_that_gives_other_logits_behind_a_prefix_takes_none():
    """Its decoder counts positions from the beginning of every forward, whatever is in front."""
    model = random_model("bart")
    embed = model.model.decoder.embed_positions
    plain = embed.forward
    embed.forward = lambda ids, past=0, position_ids=None: plain(ids, 0, position_ids=torch.arange(ids.shape[1]))
    lm = wrap_model(model, byte_tokenizer(), name="tiny")
    assert (lm.caches, lm.takes_prefixes) == (False, False)
    with pytest.raises(UnsupportedModel, match=r"behind a prefix; learn soft tokens .* or an adapter"):
        lm.logits(Batch.from_rows(Front(learned_prefix(lm, 2)), [(5, 6)]), torch.tensor([1]))


def test_what_it_cannot_take_is_refused():
    lm = tiny_encoder_decoder("t5")
    causal = tiny_model("llama")
    with pytest.raises(
        UnsupportedModel,
        match=r"3 of the cross-attention and 2 of the encoder, a prefix .* load the model",
    ):
        lm.logits(Batch.from_rows(Front(lower_tokens(causal, [1, 2])), [(5,)]), torch.tensor([0]))
    with pytest.raises(UsageError, match="stand in the rows of its texts, with the text"):
        lm.logits(Batch.from_rows(Front(soft=SOFT), [(5,)]), torch.tensor([3]))
    with pytest.raises(UsageError, match="stand in the rows of its texts"):
        lm.logits(Batch.from_rows(Front(inner_soft=SOFT), [(5,), (-1,)], (None, 0)), torch.tensor([0]))
    with pytest.raises(UsageError, match="answers behind a whole text, not inside one"):
        lm.logits(Batch.from_rows(Front(), [(5, 6)]), torch.tensor([0]))
    with pytest.raises(UsageError, match="reads in both directions"):
        lower(lm, Front(soft=SOFT))
    with pytest.raises(UnsupportedModel, match="whose hidden states no head is made of"):
        lm.hidden_states(Batch.from_rows(Front(), [(5, 6)]), torch.tensor([1]))


def test_a_front_that_the_encoder_pads_to_a_window_keeps_its_own_length():
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(LEDConfig(**BART, attention_window=8)).eval().requires_grad_(False)
    lm = wrap_model(model, byte_tokenizer(), name="led")
    assert lm.hooks is not None
    assert {key.shape[1] for key in activations(lm, [3, 4, 5, 6, 7]).keys} == {5}
