"""Runs the tokens of one step through the model."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from foreword.core import Batch, Front, embedded
from foreword.engine.attention import CachedAttention
from foreword.engine.cache import PagedCache
from foreword.engine.scheduler import ScheduledTokens
from foreword.models import LanguageModel

WARM_UP = 32
"""Tokens of the forward that warms up."""


class Runner:
    """Knows the model and the cache, and nothing of queues."""

    def __init__(self, lm: LanguageModel, cache: PagedCache) -> None:
        self._lm = lm
        self._cache = cache

    @torch.inference_mode()
    def run(self, plan: Items[ScheduledTokens]) -> Tensor:
        """Logits ``[K, vocab]`` of every work that samples, in their order and the model's dtype."""
        batch = self._batch(plan)
        last = [batch.starts[i + 1] - 1 for i, work in enumerate(plan) if work.samples]
        attend = CachedAttention(self._cache, plan, batch)
        # Without a sampling row the output matrix still gets one, which is cheaper than a special case.
        rows = torch.tensor(last or [0], device=self._lm.device)
        return self._lm.logits(batch, rows, attend=attend)[: len(last)]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """One short forward beside the cache, so that no request waits for what a model does at its first use, such as
        laying out its weights."""
        device = self._lm.device
        batch = Batch.behind(Front(), [[0] * WARM_UP], device=device)
        self._lm.logits(batch, torch.tensor([WARM_UP - 1], device=device))

    def _batch(self, plan: Items[ScheduledTokens]) -> Batch:
        tokens: list[int] = []
        softs: list[Tensor] = []
        count = 0  # soft tokens of the sequences before this one
        for work in plan:
            ids = work.sequence.tokens(work.start, work.end)
            tokens += [token if token >= 0 else token - count for token in ids]
            if work.sequence.soft is not None:
                softs.append(work.sequence.soft)
                count += len(work.sequence.soft)
        embeds, places = embedded(None, torch.cat(softs) if softs else None, tokens)
        adapters = tuple(work.sequence.adapter for work in plan)
        device = self._lm.device
        return Batch(
            lengths=tuple(work.tokens for work in plan),
            parents=(None,) * len(plan),
            prefixes=tuple(work.sequence.prefix for work in plan),
            token_ids=torch.tensor([max(token, 0) for token in tokens], device=device),
            embeds=embeds,
            embed_rows=torch.tensor(places, device=device) if embeds is not None else None,
            computed=tuple(work.start for work in plan),
            adapters=adapters if any(adapter is not None for adapter in adapters) else None,
        )
