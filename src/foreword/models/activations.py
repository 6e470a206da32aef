"""Keys and values that the model computes for a text: the activations that a prefix is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.core import Batch, Front, KVPrefix
from foreword.core.token_rows import check_token_ids
from foreword.errors import PromptTooLong, UsageError
from foreword.models.language_model import LanguageModel


def activations(lm: LanguageModel, token_ids: Sequence[int], past: KVPrefix | None = None) -> KVPrefix:
    """Keys and values of a text as a prefix (initialization by activations of real words, Li and Liang 2021).

    An encoder's are an approximation: in front of a request the text would see the request too.

    Args:
        past: a prefix that the text is run behind; the result includes it.

    Raises:
        PromptTooLong: the tokens leave no room for a request.
        UsageError: there are no tokens, or one has no row in the embedding.
    """
    check_context_length(lm.name, lm.context, len(token_ids), past)
    check_token_ids(lm.tokenizer, lm.identity.vocab_size, token_ids)
    batch = Batch.from_rows(Front(past), [tuple(token_ids)], device=lm.device)
    return append_keys_values(lm, past, *compute_keys_values(lm, batch))


def check_context_length(name: str, context: int | None, tokens: int, past: KVPrefix | None) -> None:
    """Raise UsageError for a text without tokens, PromptTooLong for one that leaves no room for a request."""
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


def append_keys_values(lm: LanguageModel, past: KVPrefix | None, keys: list[Tensor], values: list[Tensor]) -> KVPrefix:
    """A prefix of ``past``, if there is one, with keys and values behind it."""
    if past is not None and past.length:
        keys = [torch.cat([a.detach().to(b), b], dim=1) for a, b in zip(past.keys, keys, strict=True)]
        values = [torch.cat([a.detach().to(b), b], dim=1) for a, b in zip(past.values, values, strict=True)]
    return KVPrefix(lm.identity, tuple(keys), tuple(values), offset=keys[0].shape[1])
