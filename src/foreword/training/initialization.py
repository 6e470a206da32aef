"""Initial values of a run, as its recipe names them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from foreword.core import Task
from foreword.errors import SettingError
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.base import Method
from foreword.training.data.training_data import TrainingData
from foreword.training.recipe import Recipe


def initializer(
    lm: LanguageModel, recipe: Recipe, method: Method, data: TrainingData, transfer: Task | None, length: int
) -> init.Initializer:
    """The initializer of a prompt.

    Args:
        transfer: the task that ``init="task:NAME"`` names.
        length: virtual tokens.

    Raises SettingError for an initialization that has nothing to start from.
    """
    if recipe.init_text is not None:
        return init.from_text(lm, recipe.init_text, keep="first")
    if transfer is not None:
        return init.from_task(transfer, soft=method.soft)
    initializers: dict[str, Callable[[], init.Initializer]] = {
        # A little more text than the virtual tokens are likely to hold.
        "auto": lambda: init.from_text(lm, data.demonstrations(budget=6 * length)),
        "random": lambda: init.random_values,
        "uniform": lambda: init.uniform_values,
        "vocab": lambda: init.sampled_vocabulary(lm),
        "labels": lambda: init.from_text(lm, data.label_words()),
    }
    kind = method.init if recipe.init == "auto" else recipe.init
    if kind not in initializers:
        raise SettingError("init", f"--init {kind} has nothing to start from; choose {', '.join(initializers)}.")
    return initializers[kind]()


def initial_head(lm: LanguageModel, labels: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """A linear head ``[labels, hidden]`` in float32 or wider: normal weights of standard deviation 0.02, a bias of 0.

    Args:
        bias: whether the bias is learned.
    """
    head = nn.Linear(lm.identity.head_size, labels, dtype=torch.promote_types(lm.dtype, torch.float32))
    with torch.no_grad():
        head.weight.copy_(0.02 * torch.randn(head.weight.shape, generator=generator))
        head.bias.zero_()
    head.bias.requires_grad_(bias)
    return head.to(lm.device)
