"""Runs the tokens of one step through the model."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from foreword.core import Batch
from foreword.engine.attention import CachedAttention
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import Work
from foreword.models import LanguageModel


class Runner:
    """Knows the model and the cache, and nothing of queues."""

    def __init__(self, lm: LanguageModel, cache: PagedCache) -> None:
        self._lm = lm
        self._cache = cache

    @torch.inference_mode()
    def run(self, plan: Items[Work]) -> Tensor:
        """Logits ``[K, vocab]`` float32 after the last token of every work that samples, in their order."""
        tokens = [token for work in plan for token in work.sequence.tokens(work.start, work.end)]
        batch = Batch(
            lengths=tuple(work.end - work.start for work in plan),
            parents=(None,) * len(plan),
            prefixes=tuple(work.sequence.prefix for work in plan),
            token_ids=torch.tensor(tokens, device=self._lm.device),
            computed=tuple(work.start for work in plan),
        )
        last = [batch.starts[i + 1] - 1 for i, work in enumerate(plan) if work.samples]
        attend = CachedAttention(self._cache, plan, batch)
        # Without a sampling row the output matrix still gets one, which is cheaper than a special case.
        rows = torch.tensor(last or [0], device=self._lm.device)
        return self._lm.logits(batch, rows, attend=attend)[: len(last)].float()
