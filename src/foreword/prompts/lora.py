"""LoRA: low-rank changes of the frozen model's linear layers, alone or behind a prefix (Hu et al. 2021,
arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from foreword.adapters import check_adapter, linear_layers
from foreword.core import Adapter, Batch, Front, LowRank
from foreword.errors import SettingError, UsageError
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.prompts.prefix import PrefixValues, initial_prefix

RUN_TOKENS = 64
"""Enough that a mixture of experts sends some to each."""


class LoRAValues(PromptEncoder):
    """Both factors of every changed layer, in float32 or wider.

    Args:
        adapter: initial values.
        dtype: of the model.
    """

    def __init__(self, adapter: Adapter, dtype: torch.dtype) -> None:
        super().__init__()
        wide = torch.promote_types(dtype, torch.float32)
        self.down = nn.ParameterList(pair.down.detach().to(wide, copy=True) for pair in adapter.layers.values())
        self.up = nn.ParameterList(pair.up.detach().to(wide, copy=True) for pair in adapter.layers.values())
        self._names, self._scale, self._dtype = tuple(adapter.layers), adapter.scale, dtype

    def front(self) -> Front:
        pairs = zip(self._names, self.down, self.up, strict=True)
        layers = {name: LowRank(down.to(self._dtype), up.to(self._dtype)) for name, down, up in pairs}
        return Front(adapter=Adapter(layers, self._scale))


class PrefixAndLoRA(PromptEncoder):
    """A trainable prefix and a trainable adapter together."""

    def __init__(self, prefix: PrefixValues, adapter: LoRAValues) -> None:
        super().__init__()
        self.prefix, self.adapter = prefix, adapter

    def front(self) -> Front:
        return replace(self.prefix.front(), adapter=self.adapter.front().adapter)


@dataclass(frozen=True)
class LoRA:
    """Learn an adapter and no virtual tokens: the yardstick of the other methods.

    >>> foreword.LoRA(rank=16).length
    0
    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="lora", rank=16)

    Attributes:
        rank: of every change.
        alpha: every change is multiplied by ``alpha / rank``.
        targets: last parts of the names of the layers to change, such as ``q_proj``; all linear layers of attention
            and MLP without any.
    """

    name: ClassVar[str] = "lora"
    lr = 1e-3
    length: ClassVar[int] = 0
    init: ClassVar[str] = "random"
    soft: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError("rank", f"--rank must be at least 1, got {self.rank}.")

    def encoder(self, lm: LanguageModel, start: InitialValues) -> PromptEncoder:
        """The trainable values of this method at their initial values."""
        if start.length or start.token_ids is not None or start.soft is not None:
            raise UsageError("lora has no virtual tokens that could start from text; leave --length and --init out.")
        if start.prefix is not None and start.adapter is None:
            raise UsageError("the task to start from has no adapter; name a task of lora or lora-hybrid.")
        return LoRAValues(initial_adapter(lm, start, self), lm.dtype)


@dataclass(frozen=True)
class LoRAHybrid(LoRA):
    """Learn keys and values of ``length`` positions and an adapter together.

    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="lora-hybrid", rank=4, length=16)
    >>> foreword.LoRAHybrid(rank=4).name
    'lora-hybrid'
    """

    name: ClassVar[str] = "lora-hybrid"
    lr = 1e-3
    length: ClassVar[int] = 32
    init: ClassVar[str] = "auto"

    def encoder(self, lm: LanguageModel, start: InitialValues) -> PromptEncoder:
        """The trainable values of this method at their initial values."""
        prefix = PrefixValues(initial_prefix(lm, start), lm.dtype)
        return PrefixAndLoRA(prefix, LoRAValues(initial_adapter(lm, start, self), lm.dtype))


def target_layers(lm: LanguageModel, targets: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """``(in, out)`` of the linear layers inside the model's blocks, by module name; of them only those that end in one
    of ``targets``, if any are given.

    Raises:
        UsageError: a target is the end of no such name.
    """
    blocks = tuple(sorted({_block_name(name) for name, module in lm.model.named_modules() if module in lm.layers}))
    linear = linear_layers(lm.model)
    # Where no module of attention is known, all that is numbered is in a block; some are parameters and never run.
    names = [name for name in linear if name.startswith(blocks)] if blocks else _run_in_blocks(lm, linear)
    inside = {name: linear[name] for name in names}
    for target in targets:
        if not any(_matches_target(name, target) for name in inside):
            ends = sorted({name.rsplit(".", 1)[-1] for name in inside})
            raise UsageError(f"{lm.name} has no linear layer {target!r} to change; choose from {', '.join(ends)}.")
    return {
        n: widths
        for n, widths in inside.items()
        if not targets or any(_matches_target(n, target) for target in targets)
    }


@torch.no_grad()
def _run_in_blocks(lm: LanguageModel, names: Iterable[str]) -> list[str]:
    """Of some modules those that are in a numbered block and run as modules, found by running a few tokens."""
    ran: set[str] = set()
    modules = dict(lm.model.named_modules())
    inside = [name for name in names if any(part.isdigit() for part in name.split("."))]
    hooks = [modules[name].register_forward_hook(lambda *_, name=name: ran.add(name)) for name in inside]
    try:
        tokens = torch.arange(min(RUN_TOKENS, lm.vocab_size, lm.context or RUN_TOKENS)).tolist()
        lm.hidden_states(Batch.from_rows(Front(), [tokens], device=lm.device), torch.zeros(1, dtype=torch.long))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in inside if name in ran]


def _block_name(attention: str) -> str:
    """Name of the block that a self-attention module is in, up to its number: ``model.layers.0.``"""
    parts = attention.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1]) + "."


def _matches_target(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def initial_adapter(lm: LanguageModel, start: InitialValues, method: LoRA) -> Adapter:
    """Another task's adapter, or one that changes nothing yet: as in PEFT, random numbers down and zeros up.

    Raises:
        UsageError: the other task's adapter is of another kind than ``method`` learns, or there is no such target.
    """
    widths = target_layers(lm, method.targets)
    if start.adapter is not None:
        check_adapter(start.adapter, lm.model, "the task to start from")
        _check_alike(start.adapter, method, list(widths))
        return start.adapter.to(device=lm.device)

    def pair(width: int, out: int) -> LowRank:
        down = torch.empty(method.rank, width)
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=start.generator)
        return LowRank(down.to(lm.device), torch.zeros(out, method.rank, device=lm.device))

    return Adapter({name: pair(*sizes) for name, sizes in widths.items()}, method.alpha / method.rank)


def _check_alike(adapter: Adapter, method: LoRA, layers: Sequence[str]) -> None:
    theirs = (adapter.rank, adapter.rank * adapter.scale)
    if theirs != (method.rank, method.alpha) or set(adapter.layers) != set(layers):
        raise UsageError(
            f"the adapter to start from changes {len(adapter.layers)} layers with rank {theirs[0]} and alpha "
            f"{theirs[1]:g}, this run would change {len(layers)} with rank {method.rank} and alpha {method.alpha:g}; "
            "make them equal."
        )
