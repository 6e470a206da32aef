"""Checkpointing brings no dropout with it, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Batch
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from interop.families import family
from tiny_encoder_decoders import tiny_encoder_decoder


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bert"])
def test_logits_are_those_without_it(name):
    lm = family(name)
    batch, rows = Batch((9,), (None,), (None,), torch.arange(60, 69)), torch.arange(9)
    expected = lm.logits(batch, rows)
    with gradient_checkpointing(lm, True):
        torch.testing.assert_close(lm.logits(batch, rows), expected, atol=1e-5, rtol=0)


def test_rates_of_dropout_are_back_afterwards():
    lm = tiny_encoder_decoder("bart")
    layer = lm.model.get_encoder().layers[0]
    rate = layer.dropout
    assert rate > 0
    with gradient_checkpointing(lm, True):
        assert layer.dropout == 0
        assert layer.training
    assert layer.dropout == rate
    assert not layer.training
