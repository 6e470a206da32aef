"""Prompt encoders that are PEFT's functions in Foreword's parts, beginning at Foreword's initial values.

Where nothing is reparametrized both sides learn the same numbers anyway. Foreword's own networks begin at given values
and learn what to add to them; PEFT's make the values from nothing. For a comparison the function must be the same, so
here Foreword trains PEFT's. Its last layer is solved so that it makes the given values: from random ones these networks
wander where a difference of 1e-6 at the start is one of 0.3 after fifty steps, which no two programs have in common.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.train.methods import PREFIX_HIDDEN
from foreword.prompts.base import PromptEncoder
from foreword.prompts.prefix import PrefixValues
from foreword.prompts.reparam import BiLSTM, Reparam, TrainableValues
from foreword.prompts.soft import SoftTokens
from foreword.training.run import Run


def encoder(run: Run) -> PromptEncoder:
    """The encoder of a run as PEFT would have it, at the run's own initial values."""
    own = run.initial_prompt().encoder
    reparam = {"p-tuning": _lstm, "prefix-tuning": _mlp(len(run.lm.identity.layers))}.get(run.method.name)
    if reparam is not None:
        assert isinstance(own, SoftTokens | PrefixValues)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.recipe.seed)
            own.values = TrainableValues(own.values(), reparam)
    return own


def _lstm(initial: Tensor) -> tuple[Tensor, nn.Module]:
    """`peft.PromptEncoder`: the LSTM and the MLP, whose output is the soft tokens."""
    width = initial.shape[1]
    inputs = torch.randn(len(initial), width)
    inner = nn.Sequential(BiLSTM(width, width), nn.Linear(2 * width, 2 * width), nn.ReLU())
    with torch.no_grad():  # an LSTM gives little at first; of little, the last layer would have to make much
        spread = inner(inputs).std()
        for parameter in inner[1].parameters():
            parameter.div_(spread)
    return inputs, _solved(inner, nn.Linear(2 * width, width), inputs, initial)


def _mlp(layers: int) -> Reparam:
    """`peft.PrefixEncoder`: an embedding as wide as the keys of one layer, and the MLP."""

    def reparam(initial: Tensor) -> tuple[Tensor, nn.Module]:
        width = initial.shape[1] // (2 * layers)
        inputs = torch.randn(len(initial), width)
        inner = nn.Sequential(nn.Linear(width, PREFIX_HIDDEN), nn.Tanh())
        return inputs, _solved(inner, nn.Linear(PREFIX_HIDDEN, initial.shape[1]), inputs, initial)

    return reparam


@torch.no_grad()
def _solved(inner: nn.Sequential, last: nn.Linear, inputs: Tensor, values: Tensor) -> nn.Sequential:
    """Both, with the smallest weights in the last layer that make the values of the inputs."""
    hidden, wanted = inner(inputs).double(), values.double()
    last.bias.copy_(wanted.mean(0))
    last.weight.copy_(torch.linalg.lstsq(hidden, wanted - last.bias.double(), driver="gelsd").solution.T)
    return nn.Sequential(*inner, last)
