"""Encoders in front of whose rows prefixes stand on placeholder tokens: exact, mixed in a batch, and guarded."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    FNetConfig,
    FunnelConfig,
    IBertConfig,
    LongformerConfig,
    MraConfig,
    NystromformerConfig,
    ReformerConfig,
)
from transformers.models.ibert.quant_modules import QuantAct

from foreword.core import Adapter, Batch, Front, KVPrefix, LowRank, soft_id
from foreword.errors import UnsupportedModel, UsageError
from foreword.models import neighbour_rows
from foreword.models.placeholder_model import PlaceholderModel
from foreword.models.probe import prefix_left_by
from foreword.models.ways import wrap_model
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from tiny_encoders import CONFIGS, PLACEHOLDERS, RAGGED, bare_encoder, tiny_encoder
from tiny_models import SIZES, byte_tokenizer

TEXT = torch.randint(5, 250, (70,), generator=torch.Generator().manual_seed(2)).tolist()
# A front and a row of a joined text; the last row has none.
JOINED = ((TEXT[:14], TEXT[14:40]), (TEXT[40:43], TEXT[43:52]), ([], TEXT[52:70]))


def learned(lm, length: int, seed: int) -> KVPrefix:
    draw = torch.Generator().manual_seed(seed)
    shapes = lm.identity.layers
    keys, values = (
        tuple(torch.randn(s.kv_heads, length, dim, generator=draw, dtype=lm.dtype) for s, dim in sides)
        for sides in ([(s, s.key_dim) for s in shapes], [(s, s.value_dim) for s in shapes])
    )
    states = tuple(
        {each.name: torch.randn(each.shape, generator=draw, dtype=lm.dtype) for each in s.states} for s in shapes
    )
    return KVPrefix(lm.identity, keys, values, length, states=states if lm.identity.keeps_states else ())


def states(lm, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return lm.hidden_states(batch, torch.arange(batch.starts[-1]))


@pytest.mark.parametrize("family", [*RAGGED, *PLACEHOLDERS])
def test_rows_behind_different_fronts_equal_the_joined_texts(family):
    lm = tiny_encoder(family)
    assert isinstance(lm, PlaceholderModel) == (family in PLACEHOLDERS)
    fronts = [Front(prefix_left_by(lm, front, row) if front else None) for front, row in JOINED]
    batch = Batch.concat([Batch.from_rows(front, [row]) for front, (_, row) in zip(fronts, JOINED, strict=True)])
    own = bare_encoder(CONFIGS[family]())
    own.set_attn_implementation("eager") if family in RAGGED else setattr(own.config, "_attn_implementation", "eager")
    with torch.no_grad():
        found = lm.logits(batch, torch.arange(batch.starts[-1]))
        expected = [own(input_ids=torch.tensor([front + row])).logits[0, len(front) :] for front, row in JOINED]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["mpnet", "convbert", "mobilebert"])
def test_learned_prefixes_share_a_batch(family):
    lm = tiny_encoder(family)
    parts = [Batch.from_rows(Front(learned(lm, length, length)), [TEXT[:9], TEXT[9:14]]) for length in (6, 2, 6)]
    alone = torch.cat([states(lm, part) for part in parts])
    torch.testing.assert_close(states(lm, Batch.concat(parts)), alone, atol=1e-5, rtol=0)
    assert not torch.allclose(alone[:14], states(lm, Batch.from_rows(Front(), [TEXT[:9], TEXT[9:14]])), atol=1e-2)


@pytest.mark.parametrize("family", ["mpnet", "convbert"])
def test_gradients_of_a_prefix_equal_finite_differences(family):
    model = copy.deepcopy(tiny_encoder(family).model).double()
    lm = replace(wrap_model(model, byte_tokenizer(), name="double"), name="double")
    prefix = learned(lm, 3, 0)
    rows = Batch.from_rows(Front(prefix), [TEXT[:5], TEXT[5:8]])

    def out(*tensors: torch.Tensor) -> torch.Tensor:
        count = len(prefix.keys)
        left = iter(tensors[2 * count :])
        kept = tuple({name: next(left) for name in layer} for layer in prefix.states)
        changed = replace(prefix, keys=tensors[:count], values=tensors[count : 2 * count], states=kept)
        return lm.hidden_states(replace(rows, prefixes=(changed, changed)), torch.arange(8))

    torch.autograd.gradcheck(out, [each.requires_grad_() for each in prefix.tensors], fast_mode=True)


def test_soft_tokens_share_windows_that_the_model_fills_beyond_its_last_position():
    settings = {**SIZES, "max_position_embeddings": 20}
    lm = wrap_model(
        bare_encoder(LongformerConfig(**settings, attention_window=16)), byte_tokenizer(), name="short positions"
    )
    text = TEXT[:17]
    soft = lm.model.get_input_embeddings()(torch.tensor(text[:2]))
    embedded = Batch.from_rows(Front(inner_soft=soft), [[soft_id(0), soft_id(1), *text[2:]]])
    torch.testing.assert_close(states(lm, embedded), states(lm, Batch.from_rows(Front(), [text])), atol=1e-5, rtol=0)


ADAPTED = {"mpnet": "mpnet.encoder.layer.1.attention.attn.k", "ibert": "ibert.encoder.layer.1.attention.self.key"}


@pytest.mark.parametrize("family", ADAPTED)
def test_an_adapter_changes_the_rows_that_use_it_and_no_prefix(family):
    lm = tiny_encoder(family)
    name = ADAPTED[family]
    pair = LowRank(0.3 * torch.randn(2, 48), 0.3 * torch.randn(48, 2))
    adapter = Adapter({name: pair}, 0.5)
    prefix = learned(lm, 4, 1)
    parts = [Batch.from_rows(Front(prefix, adapter=each), [TEXT[:9]]) for each in (adapter, None)]
    merged = copy.deepcopy(lm)
    merged.model.get_submodule(name).weight += 0.5 * pair.up @ pair.down
    expected = torch.cat([states(merged, parts[1]), states(lm, parts[1])])
    torch.testing.assert_close(states(lm, Batch.concat(parts)), expected, atol=1e-5, rtol=0)


REFUSED = {
    "FNetForMaskedLM has no attention": FNetConfig(
        vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=64
    ),
    "to 5 keys of 9 tokens, so its layers cannot share a prefix": FunnelConfig(
        vocab_size=300, block_sizes=[2, 2], d_model=48, n_head=4, d_head=12, d_inner=64
    ),
    "NystromformerForMaskedLM mixes the queries of several rows in nystromformer.encoder.layer.0": NystromformerConfig(
        **SIZES, num_landmarks=3, segment_means_seq_len=9
    ),
    "no token sees another one in MraForMaskedLM as it runs here": MraConfig(**SIZES),
    "an attention layer runs without gradients": ReformerConfig(
        vocab_size=300,
        hidden_size=48,
        attn_layers=["local", "local"],
        num_attention_heads=4,
        attention_head_size=12,
        feed_forward_size=64,
        axial_pos_embds=False,
        is_decoder=False,
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_encoder_that_cannot_carry_a_prefix_is_refused_by_the_reason(reason):
    with pytest.raises(UnsupportedModel, match=reason):
        wrap_model(bare_encoder(REFUSED[reason]), byte_tokenizer(), name="refused")


def test_keys_in_integers_are_refused():
    model = bare_encoder(IBertConfig(**SIZES, quant_mode=True))
    for module in model.modules():
        if isinstance(module, QuantAct):
            module.x_min.fill_(-8.0)
            module.x_max.fill_(8.0)
    with pytest.raises(UnsupportedModel, match=r"the keys of .* in integers with a scale"):
        wrap_model(model, byte_tokenizer(), name="integers")


def test_a_layer_that_does_not_see_its_prefix_is_refused_by_name():
    model = bare_encoder(CONFIGS["mpnet"]())
    layer = model.mpnet.encoder.layer[1].attention.attn
    layer.o.weight.data.zero_()
    with pytest.raises(
        UnsupportedModel, match=r"does not read the keys in front in its layer 1 \(mpnet.encoder.layer.1"
    ):
        wrap_model(model, byte_tokenizer(), name="blind")


def test_what_a_layer_reads_beside_attention_is_needed(monkeypatch):
    found = neighbour_rows.NeighbourRows.find

    def nothing(*args):
        rows = found(*args)
        return replace(rows, states=((),) * len(rows.states))

    monkeypatch.setattr(neighbour_rows.NeighbourRows, "find", nothing)
    for family, module in (("convbert", "attention.self.conv"), ("mobilebert", "embedding_transformation")):
        with pytest.raises(UnsupportedModel, match=f"mixes neighbouring rows in .*{module}"):
            wrap_model(bare_encoder(CONFIGS[family]()), byte_tokenizer(), name=family)


def test_what_cannot_run_on_placeholders_is_refused():
    lm = tiny_encoder("mpnet")
    with pytest.raises(UsageError, match="starts its requests at position 9"):
        states(lm, Batch.from_rows(Front(replace(learned(lm, 4, 1), offset=9)), [TEXT[:5]]))
    with pytest.raises(UnsupportedModel, match="no sequence can continue another"):
        states(lm, Batch.from_rows(Front(), [TEXT[:5], TEXT[5:8]], [None, 0]))
    with pytest.raises(UsageError, match="leave out --checkpointing"), gradient_checkpointing(lm, True):
        pass


def test_a_model_without_input_embeddings_has_no_soft_tokens(monkeypatch):
    lm = tiny_encoder("albert")

    def forward(input_ids, position_ids=None, attention_mask=None, **kwargs):
        raise AssertionError("not reached")

    monkeypatch.setattr(lm.model, "forward", forward)
    batch = Batch.from_rows(Front(inner_soft=torch.zeros(1, 32)), [[5, -1, 6]])
    with pytest.raises(UnsupportedModel, match="takes token ids and no input embeddings, so it has no soft tokens"):
        lm.logits(batch, torch.arange(3))
