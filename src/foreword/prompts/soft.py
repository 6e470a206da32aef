"""Soft tokens: input embeddings, trained directly (prompt tuning) or through a small network (P-tuning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from foreword.core import Bos, Front, KVPrefix, soft_id
from foreword.errors import SettingError, UsageError
from foreword.models import LanguageModel
from foreword.models.language_model import token_embeddings
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.prompts.reparam import Reparam, TrainableValues, lstm, mlp

REPARAMS = {"lstm": lstm, "mlp": mlp}


class SoftTokens(PromptEncoder):
    """Trainable soft tokens ``[length, hidden]``; those in front run once a forward, for all rows.

    Args:
        initial: ``[length, hidden]``.
        constant_embeds: embeddings ``[L, hidden]`` of the template's constant beginning, in the model's dtype.
        soft_indices: rows of ``constant_embeds`` that the first soft tokens replace; the others are inside rows.
        bos: where the beginning-of-text token is, see `KVPrefix`.
        reparam: a network that they are learned through; ``None`` trains them directly.
        frozen_prefix: a prefix in front of them, which is not trained.
    """

    constant_embeds: Tensor
    soft_indices: Tensor

    def __init__(
        self,
        initial: Tensor,
        constant_embeds: Tensor,
        soft_indices: Sequence[int],
        bos: Bos,
        reparam: Reparam | None = None,
        frozen_prefix: KVPrefix | None = None,
    ) -> None:
        super().__init__()
        self.values = TrainableValues(initial, reparam)
        self.register_buffer("constant_embeds", constant_embeds, persistent=False)
        self.register_buffer(
            "soft_indices",
            torch.tensor(soft_indices, dtype=torch.long, device=constant_embeds.device),
            persistent=False,
        )
        self._bos: Bos = bos
        self._frozen_prefix = frozen_prefix

    def front(self) -> Front:
        values = self.values().to(self.constant_embeds.dtype)
        in_front, inner = values.split([len(self.soft_indices), len(values) - len(self.soft_indices)])
        soft = self.constant_embeds.index_copy(0, self.soft_indices, in_front) if len(self.constant_embeds) else None
        return Front(self._frozen_prefix, soft, inner if len(inner) else None, bos=self._bos)

    @torch.no_grad()
    def soft_tokens(self) -> Tensor:
        return self.values().to(self.constant_embeds.dtype).clone()


@dataclass(frozen=True)
class PromptTuning:
    """Learn ``length`` input embeddings (Lester et al. 2021, arXiv:2104.08691).

    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="prompt-tuning", length=20, init="vocab")
    >>> foreword.PromptTuning().lr
    0.02
    """

    name: ClassVar[str] = "prompt-tuning"
    lr = 0.02
    length: ClassVar[int] = 32
    init: ClassVar[str] = "auto"
    soft: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def encoder(self, lm: LanguageModel, start: InitialValues) -> SoftTokens:
        """The trainable values of this method at their initial values."""
        return _soft_tokens(lm, start)


@dataclass(frozen=True)
class PTuning:
    """Learn ``length`` input embeddings through a network that relates them to each other (Liu et al. 2021, GPT
    Understands, Too, arXiv:2103.10385). Lowering runs the network once; tasks do not keep it.

    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="p-tuning", encoder="mlp")
    >>> foreword.PTuning(reparam="mlp").length
    32

    Attributes:
        reparam: the network, ``lstm`` (LSTM and MLP) or ``mlp``; ``--encoder`` on the command line.
        hidden: width of its inner layers, for an LSTM in each direction.
    """

    name: ClassVar[str] = "p-tuning"
    lr = 1e-3
    length: ClassVar[int] = 32
    init: ClassVar[str] = "auto"
    soft: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    reparam: str = field(default="lstm", metadata={"flag": "encoder"})
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.reparam not in REPARAMS:
            raise SettingError(
                "encoder", f"--encoder of p-tuning must be {' or '.join(REPARAMS)}, got {self.reparam!r}."
            )
        if self.hidden is not None and self.hidden < 1:
            raise UsageError(f"--hidden must be at least 1, got {self.hidden}.")

    def encoder(self, lm: LanguageModel, start: InitialValues) -> SoftTokens:
        """The trainable values of this method at their initial values."""
        return _soft_tokens(lm, start, REPARAMS[self.reparam](self.hidden, start.generator))


def _soft_tokens(lm: LanguageModel, start: InitialValues, reparam: Reparam | None = None) -> SoftTokens:
    initial = _initial_soft_tokens(lm, start)
    in_front = [soft_id(index) for index in range(start.length)] if lm.causal else []
    constant_ids = start.constant_prefix if start.constant_prefix is not None else in_front
    soft_indices = [index for index, token in enumerate(constant_ids) if token < 0]
    named = [constant_ids[index] for index in soft_indices]
    if named != in_front[: len(named)]:
        raise UsageError(
            f"the constant beginning of the template must name the first of {start.length} soft tokens in order, and "
            f"none for a model that reads in both directions; got {[-1 - token for token in named]}."
        )
    frozen = start.frozen_prefix.to(dtype=lm.dtype, device=lm.device) if start.frozen_prefix is not None else None
    embeds = _embeddings(lm, [max(token, 0) for token in constant_ids])
    return SoftTokens(initial, embeds, soft_indices, start.bos, reparam, frozen)


def _initial_soft_tokens(lm: LanguageModel, start: InitialValues) -> Tensor:
    """``[length, hidden]`` on the model's device."""
    if start.prefix is not None:
        raise UsageError("soft tokens cannot start from another task's keys and values; use --init text.")
    if start.soft is not None:
        return start.soft.to(lm.device)
    if start.token_ids is not None:
        return _embeddings(lm, start.token_ids)
    return _embedding_std(lm) * start.noise((start.length, lm.identity.hidden_size), start.generator).to(lm.device)


@torch.no_grad()
def _embeddings(lm: LanguageModel, token_ids: Sequence[int]) -> Tensor:
    """``[n, hidden]`` as they reach the first layer: through the module, since some models scale them on the way."""
    ids = torch.tensor(token_ids, dtype=torch.long, device=lm.device)
    return token_embeddings(lm.model, ids).clone()


def _embedding_std(lm: LanguageModel) -> float:
    """Standard deviation of the embeddings that reach the first layer, over at most 4,096 tokens."""
    count = lm.identity.vocab_size
    return float(_embeddings(lm, torch.linspace(0, count - 1, min(count, 4096)).long().tolist()).float().std())
