"""A model whose layers pass no gradient on is refused before anything is learned, whatever runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from foreword.errors import UnsupportedModel
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import recipe


class Packed(nn.Linear):
    """A layer for inference alone, as libraries make of a weight: right outputs, and no backward."""

    support_avx512bf16_for_cpu = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        if self.support_avx512bf16_for_cpu:
            return super().forward(input).detach()
        return super().forward(input)


def model_of(kind: type[nn.Linear]) -> LanguageModel:
    base = tiny_model("llama")
    model = copy.deepcopy(base.model)
    for layer in model.model.layers:
        for module in (layer.self_attn, layer.mlp):
            for child in list(module.children()):
                if isinstance(child, nn.Linear):
                    child.__class__ = kind
    return wrap_model(model, base.tokenizer, name="tiny-packed")


class Detached(Packed):
    """The same of a library that cannot be asked not to."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input).detach()


@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning", "prefix-tuning", "p-tuning"])
def test_a_loss_without_gradients_is_refused(method, tmp_path):
    """Even where the model's own proof, which is pretended here, let it pass."""
    with pytest.raises(UnsupportedModel, match=r"no gradient of the loss reaches the prompt through tiny-packed \(its"):
        train(replace(model_of(Detached), passes_gradients=True), recipe(tmp_path, method=method))
    assert not (tmp_path / "run").exists()


def test_layers_that_pack_their_weights_are_kept_from_it(tmp_path):
    result = train(model_of(Packed), recipe(tmp_path, max_steps=2))
    expected = train(tiny_model("llama"), recipe(tmp_path, max_steps=2, out=str(tmp_path / "other")))
    assert result.task.prefix.keys[0].allclose(expected.task.prefix.keys[0], atol=1e-5)


def test_the_check_draws_no_random_numbers(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    from foreword.training.loop.gradient_check import check_gradients
    from foreword.training.run import Run

    run = Run.from_recipe(tiny_model("llama"), recipe(Path(tmp_path), method="p-tuning"))
    prompt = run.initial_prompt()
    torch.manual_seed(1)
    check_gradients(run, prompt)
    assert torch.rand(1).equal(expected)
    assert all(parameter.grad is None for parameter in prompt.parameters())
