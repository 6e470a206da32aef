"""`InitialValues` of a prompt encoder, and initializers: functions from a length and a generator to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foreword.core import Adapter, Bos, KVPrefix, Task
from foreword.core.token_rows import check_token_ids
from foreword.errors import UsageError
from foreword.models import LanguageModel

Noise = Callable[[Sequence[int], torch.Generator], Tensor]
"""A shape -> random numbers with mean 0 and standard deviation 1."""


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(*shape, generator=generator)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniformly distributed numbers with standard deviation 1."""
    return 3**0.5 * (2 * torch.rand(*shape, generator=generator) - 1)


@dataclass(frozen=True, eq=False)
class InitialValues:
    """Initial values for ``length`` virtual tokens: real tokens, another task's values, or else random numbers.

    Attributes:
        length: virtual tokens; 0 for methods that have none.
        generator: source of all random numbers.
        noise: how random values are distributed.
        token_ids: ``length`` real tokens whose embeddings or activations are the initial values.
        soft: another task's soft tokens ``[length, hidden]`` (transfer).
        prefix: another task's prefix of ``length`` positions (transfer); of any method, since all are lowered.
        adapter: another task's adapter (transfer).
        constant_prefix: token ids of the template's constant beginning, `foreword.core.soft_id` ``(k)`` for the learned
            soft token ``k``; soft tokens that it does not name are inside rows. ``None`` for a template without
            ``{soft:N}``: all soft tokens of a causal model are in front.
        bos: where the beginning-of-text token is, see `KVPrefix`.
        frozen_prefix: a prefix in front of the virtual tokens, which is not trained; the learned prefix includes it.
    """

    length: int
    generator: torch.Generator
    noise: Noise = normal
    token_ids: tuple[int, ...] | None = None
    soft: Tensor | None = None
    prefix: KVPrefix | None = None
    adapter: Adapter | None = None
    constant_prefix: tuple[int, ...] | None = None
    bos: Bos = "request"
    frozen_prefix: KVPrefix | None = None


Initializer = Callable[[int, torch.Generator], InitialValues]


def random_values(length: int, generator: torch.Generator) -> InitialValues:
    """Normally distributed values, in a scale that suits the method."""
    return InitialValues(length, generator)


def uniform_values(length: int, generator: torch.Generator) -> InitialValues:
    """Uniformly distributed values, in a scale that suits the method."""
    return InitialValues(length, generator, noise=uniform)


def sampled_vocabulary(lm: LanguageModel) -> Initializer:
    """Tokens drawn from the vocabulary without special ones (Lester et al. 2021, "sampled vocab")."""
    special = set(lm.tokenizer.all_special_ids)
    known = (token for token in sorted(lm.tokenizer.get_vocab().values()) if token < lm.identity.vocab_size)
    ordinary = torch.tensor([token for token in known if token not in special])

    def start(length: int, generator: torch.Generator) -> InitialValues:
        drawn = ordinary[torch.randint(len(ordinary), (length,), generator=generator)]
        return InitialValues(length, generator, token_ids=tuple(drawn.tolist()))

    return start


def from_text(lm: LanguageModel, source: str, *, keep: Literal["first", "last"] = "last") -> Initializer:
    """The tokens of a text: repeated if it is too short, and some of them if it is too long.

    Args:
        keep: the last ones, which the request follows (solved examples), or the first ones, as PEFT keeps them of a
            text that a user gives (``prompt_tuning_init_text``).
    """
    ids = lm.tokenizer(source, add_special_tokens=False).input_ids
    if not ids:
        raise UsageError("the text to start from has no tokens; give --init-text some words.")
    check_token_ids(lm.tokenizer, lm.identity.vocab_size, ids)

    def start(length: int, generator: torch.Generator) -> InitialValues:
        repeated = ids * -(-length // len(ids))
        kept = repeated[:length] if keep == "first" else repeated[-length:]
        return InitialValues(length, generator, token_ids=tuple(kept))

    return start


def from_task(task: Task, *, soft: bool = False) -> Initializer:
    """The learned values of another task (SPoT, Vu et al. 2022, arXiv:2110.07904).

    Keys and values may come from any task that has a prefix, whatever its method. Soft tokens cannot be recovered from
    keys and values, so they come only from tasks that kept theirs.

    Args:
        task: the other task.
        soft: start from its soft tokens, not from its prefix and adapter.
    """
    return _soft_from_task(task) if soft else _layers_from_task(task)


def _soft_from_task(task: Task) -> Initializer:
    def start(length: int, generator: torch.Generator) -> InitialValues:
        if task.soft is None:
            raise UsageError(
                f"the task to start from, '{task.name}', has no soft tokens, only keys and values ({task.method}); "
                "name a task of prompt-tuning or p-tuning, or learn with p-tuning-v2."
            )
        _check_length(length, len(task.soft))
        return InitialValues(length, generator, soft=task.soft)

    return start


def _layers_from_task(task: Task) -> Initializer:
    def start(length: int, generator: torch.Generator) -> InitialValues:
        if length:  # a method without virtual tokens takes the adapter alone
            _check_length(length, task.prefix.length)
        return InitialValues(length, generator, prefix=task.prefix, adapter=task.adapter)

    return start


def _check_length(length: int, found: int) -> None:
    if length != found:
        raise UsageError(f"the task to start from has {found} virtual tokens, --length is {length}; make them equal.")
