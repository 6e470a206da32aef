"""A model that loses gradients is refused when it is loaded, wherever it loses them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from foreword.bench.architectures.architecture import Architecture, byte_tokenizer
from foreword.errors import UnsupportedModel
from foreword.models import LanguageModel, load_model
from foreword.models.gradient_probe import check_gradients
from foreword.models.ways import wrap_model
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import CAUSAL, ENCODERS, save_tiny, tiny_model
from training.small_data import recipe


class NoBackward(nn.Linear):
    """A layer for inference alone, as libraries make of a weight: right outputs, and nothing behind them."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).detach()


class Rounded(torch.autograd.Function):
    """The derivative of rounding: zero wherever there is one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (x * 64).round() / 64

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class RoundsItsInput(nn.Linear):
    """A layer whose gradient is zero, not absent."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(Rounded.apply(input))


class NotANumber(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        output = super().forward(input)
        if output.requires_grad:
            output.register_hook(lambda grad: grad * float("nan"))
        return output


class WithoutItsScale(torch.autograd.Function):
    """The gradient of a weight whose scale was forgotten."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ (ctx.weight / ctx.weight.abs().max() * 127), None


class ForgetsItsScale(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return WithoutItsScale.apply(input, self.weight)


class Router(nn.Linear):
    """A linear layer by its widths alone."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).relu() ** 2


class DetachedMLP(modeling_llama.LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def broken(path: str, kind: type[nn.Module]) -> LanguageModel:
    """Tiny Llama with one module of another class."""
    base = tiny_model("llama")
    model = copy.deepcopy(base.model)
    model.get_submodule(path).__class__ = kind
    return wrap_model(model, base.tokenizer, name="tiny-broken")


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("model.layers.1.self_attn.o_proj", NoBackward, r"layer model.layers.1.self_attn.o_proj \(NoBackward\) passes"),
        ("model.layers.1.mlp.up_proj", NoBackward, r"layer model.layers.1.mlp.up_proj \(NoBackward\) passes none on"),
        (
            "model.layers.0.self_attn.q_proj",
            RoundsItsInput,
            r"that of its layer .*self_attn.q_proj \(RoundsItsInput\) is wrong",
        ),
        ("model.layers.1.mlp.down_proj", ForgetsItsScale, r"mlp.down_proj \(ForgetsItsScale\) is wrong"),
        ("model.layers.2.mlp", DetachedMLP, r"its layer model.layers.2.mlp \(DetachedMLP\) passes none on"),
        ("lm_head", NoBackward, r"its layer lm_head \(NoBackward\) passes none on"),
        ("model.layers.2.mlp.gate_proj", NotANumber, r"that of .* (is no number|is wrong)"),
    ],
)
def test_a_module_that_loses_the_gradient_is_named(path, kind, reason):
    with pytest.raises(UnsupportedModel, match=rf"gradients are lost in tiny-broken: .*{reason}") as caught:
        check_gradients(broken(path, kind))
    assert "is_trainable=False" in str(caught.value)


def test_keys_that_no_gradient_reaches_are_named(monkeypatch):
    """Nothing but the attention is broken, which is no module."""
    from foreword import attention

    whole = attention.grouped_query_attention

    def detached(query, key, value, mask, spec):
        return whole(query, key.detach(), value, mask, spec)

    monkeypatch.setattr(attention, "grouped_query_attention", detached)
    lm = copy.copy(tiny_model("llama"))
    lm.passes_gradients = False
    with pytest.raises(UnsupportedModel, match=r"none reaches the keys of layer 0, so what is learned"):
        check_gradients(lm)


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_models_that_learn_pass(family):
    lm = copy.copy(tiny_model(family))
    lm.passes_gradients = False
    hooks = [len(module._forward_hooks) for module in lm.model.modules()]  # adapters of other tests leave theirs
    check_gradients(lm)
    assert lm.passes_gradients
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert [len(module._forward_hooks) for module in lm.model.modules()] == hooks


def test_soft_tokens_of_an_encoder_decoder_pass():
    check_gradients(tiny_encoder_decoder("t5"))


def test_it_is_refused_at_load_unless_it_only_serves(tmp_path, monkeypatch):
    folder = str(save_tiny("llama", tmp_path / "model"))
    assert load_model(folder).passes_gradients
    monkeypatch.setattr(modeling_llama, "LlamaMLP", DetachedMLP)
    with pytest.raises(UnsupportedModel, match=r"gradients are lost in .*layers\.0\.mlp \(DetachedMLP\)"):
        load_model(folder)
    lm = load_model(folder, is_trainable=False)
    assert not lm.passes_gradients

    from foreword.training.train import train

    with pytest.raises(UnsupportedModel, match=r"gradients are lost in .*layers\.0\.mlp \(DetachedMLP\)"):
        train(lm, recipe(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "model_type"), [("causal", "deepseek_v32"), ("masked", "esmc")])
def test_what_has_no_gradient_by_design_is_no_loss(tmp_path, kind, model_type):
    """An indexer chooses keys without gradients; some models take no embeddings in place of tokens."""
    assert load_architecture(kind, model_type, tmp_path).passes_gradients


def test_a_model_that_turns_gradients_off_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="its own forward turns gradients off in some of its layers"):
        load_architecture("causal", "hrm_text", tmp_path)


def load_architecture(kind, model_type, folder):
    (found,) = (each for each in Architecture.all(kind) if each.model_type == model_type)
    found.build().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return load_model(str(folder), dtype="float32", device="cpu", progress=lambda _: None)


def test_a_layer_that_is_linear_by_its_widths_alone_passes():
    check_gradients(broken("model.layers.1.mlp.up_proj", Router))
