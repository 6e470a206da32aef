"""Prompt tuning: learned input embeddings in front of the request (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from foreword.core import Front
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import Start


class SoftPrompt(PromptEncoder):
    """Soft tokens ``[P, hidden]`` in float32 or wider; they run once a pass and every row sees their keys and
    values."""

    def __init__(self, values: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.values = nn.Parameter(values.to(torch.promote_types(values.dtype, torch.float32)))
        self._dtype = dtype

    def front(self) -> Front:
        return Front(soft=self.values.to(self._dtype))


@dataclass(frozen=True)
class PromptTuning:
    """Learn ``length`` input embeddings. Random values are drawn with the spread of the model's own embeddings."""

    name: ClassVar[str] = "prompt-tuning"
    lr: ClassVar[float] = 0.02
    length: ClassVar[int] = 32
    init: ClassVar[str] = "auto"

    def encoder(self, lm: LanguageModel, start: Start) -> SoftPrompt:
        if start.prefix is not None:
            raise UsageError("prompt-tuning cannot start from another task's keys and values; use --init text.")
        table = lm.model.get_input_embeddings()
        if start.token_ids is None:
            spread = _spread(table)
            noise = torch.randn(start.length, table.weight.shape[1], generator=start.generator)
            return SoftPrompt((spread * noise).to(lm.device), lm.dtype)
        # Through the module, not its weight: some models scale embeddings on the way out.
        ids = torch.tensor(start.token_ids, device=lm.device)
        with torch.no_grad():
            return SoftPrompt(table(ids).clone(), lm.dtype)


@torch.no_grad()
def _spread(table: nn.Embedding) -> float:
    """Standard deviation of the embeddings that reach the first layer, over at most 4,096 tokens."""
    count = int(table.weight.shape[0])
    ids = torch.linspace(0, count - 1, min(count, 4096), device=table.weight.device).long()
    return float(table(ids).float().std())
