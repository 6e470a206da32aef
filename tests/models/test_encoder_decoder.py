"""Encoder-decoders: loaded with their own attention, run on ragged batches, and decoded token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from foreword import attention
from foreword.core import Adapter, Batch, Front, LowRank
from foreword.errors import UnsupportedModel, UsageError
from foreword.models import load_model
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.models.encoder_decoder_padding import pads_in_front
from foreword.models.load import wrap_model
from foreword.prompts.lower import lower, lower_tokens
from tiny_encoder_decoders import FAMILIES, PAD, random_model, save_tiny, tiny_encoder_decoder
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
    assert len(lm.identity.layers) == 3  # the decoder's; the encoder has 2
    assert lm.proof is not None
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


@pytest.mark.parametrize(("family", "expected"), [("t5", True), ("bart", False)])
def test_padding_in_front_of_answers_is_measured(family, expected):
    """T5's positions are relative, BART's are counted from the beginning of the cache."""
    assert pads_in_front(tiny_encoder_decoder(family)) is expected


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


def test_what_it_cannot_take_is_refused():
    lm = tiny_encoder_decoder("t5")
    names = [name for name, module in lm.model.named_modules() if isinstance(module, torch.nn.Linear)]
    adapter = Adapter({names[0]: LowRank(torch.ones(1, 48), torch.ones(48, 1))})
    rows = [(-1, 5), (6,)]
    with pytest.raises(UnsupportedModel, match="takes soft tokens in front of its text and neither prefixes nor"):
        lm.logits(Batch.from_rows(Front(inner_soft=SOFT, adapter=adapter), rows, (None, 0)), torch.tensor([1]))
    causal = tiny_model("llama")
    with pytest.raises(UnsupportedModel, match="neither prefixes nor adapters"):
        lm.logits(Batch.from_rows(Front(lower_tokens(causal, [1, 2])), [(5,)]), torch.tensor([0]))
    with pytest.raises(UsageError, match="stand in the rows of its texts, with the text"):
        lm.logits(Batch.from_rows(Front(soft=SOFT), [(5,)]), torch.tensor([3]))
    with pytest.raises(UsageError, match="stand in the rows of its texts"):
        lm.logits(Batch.from_rows(Front(inner_soft=SOFT), [(5,), (-1,)], (None, 0)), torch.tensor([0]))
    with pytest.raises(UsageError, match="answers behind a whole text, not inside one"):
        lm.logits(Batch.from_rows(Front(), [(5, 6)]), torch.tensor([0]))
    with pytest.raises(UsageError, match="reads in both directions"):
        lower(lm, Front(soft=SOFT))
    with pytest.raises(UnsupportedModel, match="whose hidden states no head or prefix is made of"):
        lm.hidden_states(Batch.from_rows(Front(), [(5, 6)]), torch.tensor([1]))
