"""Keys and values of a text that runs alone: what a prefix is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.core import Batch, Front, KVPrefix
from foreword.errors import PromptTooLong, UsageError
from foreword.models.language_model import LanguageModel


def activations(lm: LanguageModel, token_ids: Sequence[int], past: KVPrefix | None = None) -> KVPrefix:
    """Keys and values of a text that runs alone: what a learned prefix starts from.

    Those of an encoder are near what the text gives in front of a request, and not the same, since there it sees the
    request too.

    Raises:
        PromptTooLong: the tokens leave no room for a request.
        UsageError: there are no tokens.
    """
    check_context_length(lm.name, lm.context, len(token_ids), past)
    batch = Batch.from_rows(Front(past), [tuple(token_ids)], device=lm.device)
    return append_keys_values(lm, past, *compute_keys_values(lm, batch))


def check_context_length(name: str, context: int | None, tokens: int, past: KVPrefix | None) -> None:
    """Raise for a text that can stand in front of no request, as `activations` does."""
    if not tokens:
        raise UsageError("the text has no tokens; a static prefix needs at least one.")
    used = tokens + (past.length if past is not None else 0)
    if context is not None and used >= context:
        raise PromptTooLong(
            f"the text has {used} tokens, the context of {name} is {context}; shorten it so that a request fits."
        )


@torch.no_grad()
def compute_keys_values(lm: LanguageModel, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values ``[kv_heads, N, dim]`` of the batch's tokens, a layer each."""
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def collect(layer: int, key: Tensor, value: Tensor) -> None:
        keys[layer], values[layer] = key.contiguous(), value.contiguous()

    lm.hidden_states(batch, torch.zeros(1, dtype=torch.long, device=lm.device), on_keys_values=collect)
    layers = range(len(lm.identity.layers))
    return [keys[layer] for layer in layers], [values[layer] for layer in layers]


def append_keys_values(lm: LanguageModel, first: KVPrefix | None, keys: list[Tensor], values: list[Tensor]) -> KVPrefix:
    """A prefix of what stands first, if anything, and of the collected keys and values behind it."""
    if first is not None and first.length:
        keys = [torch.cat([a.detach().to(b), b], dim=1) for a, b in zip(first.keys, keys, strict=True)]
        values = [torch.cat([a.detach().to(b), b], dim=1) for a, b in zip(first.values, values, strict=True)]
    return KVPrefix(lm.identity, tuple(keys), tuple(values), offset=keys[0].shape[1])
