"""Packed products give what the stock layers give, and notice when a weight or a copy is another."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from foreword.core import Batch, Front
from foreword.models.packed_linear import (
    FusedLinear,
    PackedConv1D,
    PackedLinear,
    is_packing_supported,
    pack_linear_layers,
    release_packed_weights,
)
from tiny_models import CAUSAL, ENCODERS, tiny_model

pytestmark = pytest.mark.skipif(not is_packing_supported(torch.float32), reason="this PyTorch packs no weights")


def packed_layers(model: nn.Module) -> list:
    return [module for module in model.modules() if isinstance(module, PackedLinear | PackedConv1D)]


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_logits_are_those_of_the_stock_layers(family):
    lm = tiny_model(family)
    assert packed_layers(lm.model), "nothing is packed, so this test compares nothing"
    batch = Batch.from_rows(Front(), [[5, 7, 11, 13], [17, 19]])
    rows = torch.tensor([3, 5])
    with torch.no_grad():
        found = lm.logits(batch, rows)
    stock = lm.logits(batch, rows).detach()  # with gradients recorded
    torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-5)


def test_layers_that_share_an_input_become_one_product():
    lm = tiny_model("llama")
    layer = lm.model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert attention.q_proj.fused.layers == (attention.q_proj, attention.k_proj, attention.v_proj)
    assert mlp.gate_proj.fused is mlp.up_proj.fused
    assert attention.o_proj.fused.layers == (attention.o_proj,)


def test_a_changed_weight_is_noticed():
    lm = copy.copy(tiny_model("llama"))
    linear = copy.deepcopy(lm.model.model.layers[0].mlp)
    x = torch.randn(1, 3, 48)
    with torch.no_grad():
        before = linear(x)
        linear.down_proj.weight.mul_(2.0)
        torch.testing.assert_close(linear(x), 2 * before)


def test_another_tensor_in_a_weight_is_noticed():
    linear = copy.deepcopy(tiny_model("llama").model.model.layers[0].mlp)
    x = torch.randn(1, 3, 48)
    with torch.no_grad():
        before = linear(x)
        linear.down_proj.weight.data = 2 * linear.down_proj.weight.data
        torch.testing.assert_close(linear(x), 2 * before)
        linear.to(torch.bfloat16)
        assert linear(x.bfloat16()).dtype == torch.bfloat16


def test_what_is_released_is_packed_again():
    linear = copy.deepcopy(tiny_model("llama").model.model.layers[0].mlp)
    x = torch.randn(1, 3, 48)
    with torch.no_grad():
        before = linear(x)
        assert linear.down_proj.fused._packed is not None
        release_packed_weights(linear)
        assert all(module.fused._packed is None for module in packed_layers(linear))
        torch.testing.assert_close(linear(x), before)


def test_a_changed_bias_is_noticed():
    linear = nn.Linear(8, 8).requires_grad_(False)
    layers, x = nn.ModuleList([linear]), torch.randn(1, 8)
    assert pack_linear_layers(layers, lambda: layers[0](x)) == 1
    with torch.no_grad():
        before = layers[0](x)
        linear.bias.add_(1.0)
        torch.testing.assert_close(layers[0](x), before + 1.0)


def test_a_layer_that_learns_is_not_packed():
    linear = copy.deepcopy(tiny_model("llama").model.model.layers[0].mlp).requires_grad_()
    x = torch.randn(1, 3, 48)
    with torch.no_grad():
        before = linear(x)
        linear.down_proj.weight.data.mul_(2.0)
        torch.testing.assert_close(linear(x), 2 * before)


def test_a_copy_has_products_of_its_own():
    mlp = tiny_model("llama").model.model.layers[0].mlp
    x = torch.randn(1, 3, 48)
    with torch.no_grad():
        before = mlp(x)
        other = copy.deepcopy(mlp)
        other.up_proj.weight.zero_()
        assert other.up_proj.fused.layers[0] is other.gate_proj
        assert not other(x).any()
        torch.testing.assert_close(mlp(x), before)


def test_gradients_go_through_the_stock_layer():
    mlp = tiny_model("llama").model.model.layers[0].mlp
    x = torch.randn(1, 3, 48, requires_grad=True)
    mlp(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_a_layer_that_is_asked_out_of_turn_is_right():
    attention = tiny_model("llama").model.model.layers[0].self_attn
    first, second = torch.randn(1, 3, 48), torch.randn(1, 3, 48)
    with torch.no_grad():
        attention.q_proj(first)
        torch.testing.assert_close(attention.k_proj(second), second @ attention.k_proj.weight.T)
        torch.testing.assert_close(attention.v_proj(first), first @ attention.v_proj.weight.T)


def test_two_threads_do_not_mix():
    attention = tiny_model("llama").model.model.layers[0].self_attn
    wrong = []

    def work(seed: int) -> None:
        x = torch.randn(1, 3, 48, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for _ in range(200):
                found = [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
                expected = [x @ layer.weight.T for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
                if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True)):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_shapes(kind, dtype):
    layers = nn.ModuleList([kind(24, 40), kind(24, 24)] if kind is nn.Linear else [kind(40, 24), kind(24, 24)])
    layers = layers.to(dtype).requires_grad_(False)
    for layer in layers:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 24).to(dtype)
    expected = [layer(x).detach() for layer in layers]
    assert pack_linear_layers(layers, lambda: [layer(x) for layer in layers]) == 1
    with torch.no_grad():
        found = [layer(x) for layer in layers]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    assert isinstance(layers[0].fused, FusedLinear)


def test_other_dtypes_are_left_alone():
    layers = nn.ModuleList([nn.Linear(8, 8)]).double()
    assert pack_linear_layers(layers, lambda: layers[0](torch.ones(1, 8).double())) == 0
    assert type(layers[0]) is nn.Linear
