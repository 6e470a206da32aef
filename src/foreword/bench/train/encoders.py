"""Prompt encoders that are PEFT's functions in Foreword's parts.

Where nothing is reparametrized both sides learn the same numbers anyway. Foreword's own networks begin at given values
and learn what to add to them; PEFT's make the values from nothing. For a comparison of speed the function must be the
same, so here Foreword trains PEFT's: its own encoders, handed another network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from foreword.bench.train.case import PREFIX_HIDDEN
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import random_values
from foreword.prompts.prefix import PrefixValues, initial_prefix
from foreword.prompts.reparam import BothWays
from foreword.prompts.soft import SoftTokens
from foreword.training.run import Run


def encoder(run: Run) -> PromptEncoder:
    """The encoder of a run as PEFT would have it, at seeded random or at the run's own initial values."""
    make = _MADE.get(run.method.name)
    return make(run) if make is not None else run.learned().encoder


def _p_tuning(run: Run) -> PromptEncoder:
    shape = run.length, run.lm.identity.hidden_size
    initial = torch.randn(shape, generator=torch.Generator().manual_seed(run.recipe.seed))
    # Every position is learned, so nothing of the lead is ever seen.
    lead = torch.zeros(shape, dtype=run.lm.dtype)
    return SoftTokens(initial, lead, range(run.length), "request", _seeded(run, _lstm))


def _prefix_tuning(run: Run) -> PromptEncoder:
    start = random_values(run.length, torch.Generator().manual_seed(run.recipe.seed))
    prefix = initial_prefix(run.lm, start)
    layers = len(run.lm.identity.layers)
    return PrefixValues(prefix, run.lm.dtype, reparam=_seeded(run, lambda values: _mlp(values, layers)))


_MADE: dict[str, Callable[[Run], PromptEncoder]] = {"p-tuning": _p_tuning, "prefix-tuning": _prefix_tuning}


def _lstm(initial: Tensor) -> tuple[Tensor, nn.Module]:
    """`peft.PromptEncoder`: the LSTM and the MLP, whose output is the soft tokens."""
    width = initial.shape[1]
    return initial, nn.Sequential(
        BothWays(width, width), nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
    )


def _mlp(values: Tensor, layers: int) -> tuple[Tensor, nn.Module]:
    """`peft.PrefixEncoder`: an embedding as wide as the keys of one layer, and the MLP."""
    width = values.shape[1] // (2 * layers)
    network = nn.Sequential(nn.Linear(width, PREFIX_HIDDEN), nn.Tanh(), nn.Linear(PREFIX_HIDDEN, values.shape[1]))
    return torch.randn(values.shape[0], width), network


def _seeded(
    run: Run, make: Callable[[Tensor], tuple[Tensor, nn.Module]]
) -> Callable[[Tensor], tuple[Tensor, nn.Module]]:
    def reparam(initial: Tensor) -> tuple[Tensor, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.recipe.seed)
            return make(initial)

    return reparam
