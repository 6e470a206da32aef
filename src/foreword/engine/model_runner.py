"""`ModelRunner`: runs the scheduled tokens of one step through the model."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from foreword.core import Batch, Front, gather_embeds
from foreword.engine.cache import PagedCache
from foreword.engine.paged_attention import PagedAttention
from foreword.engine.paged_past import PagedPast
from foreword.engine.scheduler import ScheduledTokens
from foreword.models import LanguageModel
from foreword.models.cached_model import CachedModel

WARM_UP_TOKENS = 32


class ModelRunner:
    """The model and its cache, without any queue.

    Args:
        apart: run every sequence in a forward of its own, since kernels round otherwise in other shapes.
    """

    def __init__(self, lm: LanguageModel, cache: PagedCache, *, apart: bool = False) -> None:
        self._lm = lm
        self._cache = cache
        self._apart = apart

    @torch.inference_mode()
    def run(self, scheduled: Items[ScheduledTokens]) -> Tensor:
        """Logits ``[K, vocab]``, in the model's dtype, after each entry that needs them, in their order."""
        if not self._apart:
            return self._run(scheduled)
        return torch.cat([self._run([each]) for each in scheduled])

    def _run(self, scheduled: Items[ScheduledTokens]) -> Tensor:
        batch = make_batch(scheduled, self._lm.device)
        last = [batch.starts[index + 1] - 1 for index, each in enumerate(scheduled) if each.needs_logits]
        front = PagedPast if isinstance(self._lm, CachedModel) else PagedAttention
        # Without a row the output matrix still gets one, which is cheaper than a special case.
        rows = torch.tensor(last or [0], device=self._lm.device)
        return self._lm.logits(batch, rows, attend=front(self._cache, scheduled, batch))[: len(last)]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run one short forward without the cache, so that what a model does at its first use, such as packing its
        weights, does not delay the first request."""
        device = self._lm.device
        batch = Batch.from_rows(Front(), [[0] * WARM_UP_TOKENS], device=device)
        self._lm.logits(batch, torch.tensor([WARM_UP_TOKENS - 1], device=device))


def make_batch(scheduled: Items[ScheduledTokens], device: torch.device) -> Batch:
    """The tokens as a ragged batch; soft tokens of all sequences are numbered one after another."""
    tokens: list[int] = []
    softs: list[Tensor] = []
    num_soft = 0
    for each in scheduled:
        ids = each.sequence.token_ids(each.start, each.end)
        tokens += [token if token >= 0 else token - num_soft for token in ids]
        if each.sequence.soft is not None:
            softs.append(each.sequence.soft)
            num_soft += len(each.sequence.soft)
    embeds, embed_indices = gather_embeds(None, torch.cat(softs) if softs else None, tokens)
    adapters = tuple(each.sequence.adapter for each in scheduled)
    return Batch(
        lengths=tuple(each.num_tokens for each in scheduled),
        parents=(None,) * len(scheduled),
        prefixes=tuple(each.sequence.prefix for each in scheduled),
        token_ids=torch.tensor([max(token, 0) for token in tokens], device=device),
        embeds=embeds,
        embed_indices=torch.tensor(embed_indices, device=device) if embeds is not None else None,
        num_computed_tokens=tuple(each.start for each in scheduled),
        adapters=adapters if any(adapter is not None for adapter in adapters) else None,
    )
