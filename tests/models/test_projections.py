"""Keys and values as they leave a model's projections: found, numbered, recorded and replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    FNetConfig,
    FNetModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    SqueezeBertConfig,
    SqueezeBertModel,
    T5Config,
    T5Model,
)

from foreword.errors import UnsupportedModel
from foreword.models.projections import KeysValuesAt, ProjectionHooks

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
MODELS = {
    "albert": lambda: AlbertModel(AlbertConfig(**SIZES, embedding_size=32)),
    "deberta": lambda: DebertaModel(DebertaConfig(**SIZES, **RELATIVE)),
    "deberta-v3": lambda: DebertaV2Model(DebertaV2Config(**SIZES, **RELATIVE, share_att_key=True, position_buckets=8)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZES, pad_token_id=0)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "squeezebert": lambda: SqueezeBertModel(SqueezeBertConfig(**SIZES, embedding_size=32)),
}
IDS = torch.arange(5, 14)[None]


def tiny(make):
    torch.manual_seed(0)
    return make().double().eval().requires_grad_(False)


@pytest.mark.parametrize("family", MODELS)
def test_front_rows_behind_recorded_keys_and_values_may_hold_any_tokens(family):
    model = tiny(MODELS[family])
    hooks = ProjectionHooks.of(model, lambda: model(input_ids=IDS))
    assert [(layer.kv_heads, layer.key_dim, layer.cross) for layer in hooks.layers] == [(4, 8, False)] * 2
    found = {}
    with hooks.replaced({}, lambda layer, key, value: found.__setitem__(layer, (key, value))):
        joined = model(input_ids=IDS).last_hidden_state
    front = torch.arange(3)
    places = {
        layer: KeysValuesAt(torch.zeros_like(front), front, key[0, :3], value[0, :3])
        for layer, (key, value) in found.items()
    }
    other = IDS.clone()
    other[0, :3] = 50
    with hooks.replaced(places):
        carried = model(input_ids=other).last_hidden_state
    assert torch.allclose(carried[:, 3:], joined[:, 3:], atol=1e-6)
    assert not torch.allclose(model(input_ids=other).last_hidden_state[:, 3:], joined[:, 3:], atol=1e-3)


@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_gradients_reach_replaced_keys_and_values(family):
    model = tiny(MODELS[family])
    hooks = ProjectionHooks.of(model, lambda: model(input_ids=IDS))
    zero = torch.zeros(2, dtype=torch.long)

    def out(*parts):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        places = {n: KeysValuesAt(zero, torch.arange(2), key, value) for n, (key, value) in enumerate(pairs)}
        with hooks.replaced(places):
            return model(input_ids=IDS).last_hidden_state[:, 2:]

    parts = [torch.randn(2, 32, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    torch.autograd.gradcheck(out, parts, fast_mode=True)


def test_layers_of_an_encoder_decoder_are_numbered_in_order_of_use():
    config = T5Config(vocab_size=60, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    model = T5Model(config).eval()
    hooks = ProjectionHooks.of(model, lambda: model(input_ids=IDS, decoder_input_ids=IDS[:, :4]))
    assert [(layer.key_dim, layer.cross) for layer in hooks.layers] == [(16, False), (16, False), (16, True)]
    shapes = {}
    with hooks.replaced({}, lambda layer, key, value: shapes.__setitem__(layer, tuple(key.shape))):
        model(input_ids=IDS, decoder_input_ids=IDS[:, :4])
    assert shapes == {0: (1, 9, 32), 1: (1, 4, 32), 2: (1, 9, 32)}


def test_a_layer_that_does_not_run_is_named():
    config = T5Config(vocab_size=60, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    model = T5Model(config).eval()
    hooks = ProjectionHooks.of(model, lambda: model(input_ids=IDS, decoder_input_ids=IDS[:, :4]))
    place = KeysValuesAt(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 32), torch.zeros(1, 32))
    with pytest.raises(UnsupportedModel, match=r"EncDecAttention did not run"), hooks.replaced({2: place}):
        model.encoder(input_ids=IDS)


def test_a_model_without_attention_is_refused():
    model = FNetModel(FNetConfig(**{**SIZES, "num_attention_heads": None})).eval()
    with pytest.raises(UnsupportedModel, match="FNetModel has no attention"):
        ProjectionHooks.of(model, lambda: model(input_ids=IDS))


def test_projections_that_do_not_run_as_modules_are_refused():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return x @ self.key.weight

    model = nn.Sequential(Aside())
    with pytest.raises(UnsupportedModel, match="does not run 0 or its projections"):
        ProjectionHooks.of(model, lambda: model(torch.zeros(1, 3, 4)))
