"""Initial values of a distilled prefix: keys and values of chosen tokens of the text, rotated to their new positions.

A chosen key keeps its distance from the request, so the logits are those of the text with all other tokens masked:
rotary positions are relative. The first token is always chosen, as an attention sink that is never learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from foreword.attention import RaggedAttention
from foreword.core import Batch, Front, KVPrefix
from foreword.dense_attention import AttentionSpec
from foreword.errors import UnsupportedModel
from foreword.models import LanguageModel
from foreword.models.cached_model import CachedModel
from foreword.prompts.rotate import rotate
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import SelfStudyConversation
from foreword.training.distillation.teacher_logits import conversation_batches

# Conversations whose attention is recorded.
RECORDED_CONVERSATIONS = 48


@dataclass(frozen=True, eq=False)
class InitSource:
    """The inputs of an initializer.

    Attributes:
        lm: the base model.
        document: the text.
        conversations: about it.
        length: virtual tokens of the prefix.
    """

    lm: LanguageModel
    document: Document
    conversations: Sequence[SelfStudyConversation]
    length: int

    def gather(self, places: Sequence[Tensor]) -> KVPrefix:
        """The prefix of chosen tokens; the request behind it starts at position ``length``.

        Args:
            places: ``[kv_heads, length]`` indices of tokens of all chunks, for every layer.

        Raises:
            UnsupportedModel: keys of the model cannot move.
        """
        keys, values = self._rotated
        return KVPrefix(
            self.lm.identity,
            tuple(map(_gather_tokens, keys, places)),
            tuple(map(_gather_tokens, values, places)),
            offset=self.length,
            bos=self.document.chunks[0].prefix.bos,
        )

    @cached_property
    def _rotated(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values ``[kv_heads, tokens, dim]`` of all chunks, each rotated to end at position ``length``."""
        prefixes = [chunk.prefix for chunk in self.document.chunks]
        rotated = [rotate(self.lm, prefix, self.length - prefix.length) for prefix in prefixes]
        keys = [torch.cat(layer, dim=1) for layer in zip(*(each.keys for each in rotated), strict=True)]
        values = [torch.cat(layer, dim=1) for layer in zip(*(each.values for each in rotated), strict=True)]
        return keys, values

    def all_heads(self, places: Tensor) -> list[Tensor]:
        """The same ``[length]`` places for all heads of all layers."""
        return [places.expand(shape.kv_heads, -1) for shape in self.lm.identity.layers]


PrefixInit = Callable[[InitSource], KVPrefix]


def first_tokens(source: InitSource) -> KVPrefix:
    """The first tokens of the text."""
    places = torch.arange(source.length, device=source.lm.device)
    return source.gather(source.all_heads(places))


def evenly_spaced_tokens(source: InitSource) -> KVPrefix:
    """Tokens spread evenly over the text, from the first one on."""
    places = torch.arange(source.length, device=source.lm.device) * source.document.tokens // source.length
    return source.gather(source.all_heads(places))


def most_attended_tokens(source: InitSource) -> KVPrefix:
    """For every key head, the tokens with the largest attention mass from conversations about the text."""
    masses = attention_mass(source.lm, source.document, source.conversations[:RECORDED_CONVERSATIONS])
    for mass in masses:
        mass[:, 0] = float("inf")
    return source.gather([mass.topk(source.length).indices.sort().values for mass in masses])


INITIALIZERS: dict[str, PrefixInit] = {
    "attention": most_attended_tokens,
    "even": evenly_spaced_tokens,
    "first": first_tokens,
}


@torch.no_grad()
def attention_mass(
    lm: LanguageModel, document: Document, conversations: Sequence[SelfStudyConversation]
) -> list[Tensor]:
    """Attention weights on every token of the text, summed over conversations: ``[kv_heads, tokens]`` a layer.

    Raises UnsupportedModel for a model whose attention is its own.
    """
    if isinstance(lm, CachedModel):
        raise UnsupportedModel(
            f"{lm.name} computes its attention by itself, so its weights cannot be recorded; start from tokens spread "
            "over the text (--init even)."
        )
    sizes = [chunk.prefix.length for chunk in document.chunks]
    masses = [torch.zeros(s.kv_heads, sum(sizes), device=lm.device) for s in lm.identity.layers]
    for numbers in conversation_batches(conversations):
        chunk = conversations[numbers[0]].chunk
        prefix = document.chunks[chunk].prefix
        batch = Batch.from_rows(
            Front(prefix), [conversations[n].encoded().token_ids for n in numbers], device=lm.device
        )
        recorder = _AttentionRecorder(batch, prefix)
        lm.hidden_states(batch, torch.zeros(1, dtype=torch.long, device=lm.device), attend=recorder)
        start = sum(sizes[:chunk])
        for layer, mass in recorder.masses.items():
            masses[layer][:, start : start + prefix.length] += mass
    return masses


@dataclass
class _AttentionRecorder:
    """An attention function that also records the attention mass on the prefix's tokens.

    Attributes:
        batch: sequences behind the prefix.
        prefix: in front of all of them.
        masses: ``[kv_heads, P]`` of every layer, summed over queries and query heads.
    """

    batch: Batch
    prefix: KVPrefix
    masses: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._attend = RaggedAttention(self.batch)

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spec: AttentionSpec,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        stored = self.prefix.keys[layer].to(query)
        grouped = query.unflatten(0, (len(stored), -1)).float()
        mass = torch.zeros(stored.shape[:2], device=query.device)
        for start, end in zip(self.batch.starts[:-1], self.batch.starts[1:], strict=True):
            # The softmax is over the prefix and the conversation so far.
            keys = torch.cat([stored, key[:, start:end]], dim=1).float()
            scores = spec.capped(grouped[:, :, start:end] @ keys[:, None].mT * spec.scale)
            query_at = torch.arange(stored.shape[1], keys.shape[1], device=query.device)[:, None]
            key_at = torch.arange(keys.shape[1], device=query.device)
            masked = key_at > query_at
            if window is not None:
                masked |= key_at <= query_at - window
            scores = scores.masked_fill(masked, float("-inf"))
            mass += scores.softmax(-1)[..., : stored.shape[1]].sum((1, 2))
        self.masses[layer] = mass
        return self._attend(layer, query, key, value, spec, window, causal)


def _gather_tokens(tensor: Tensor, places: Tensor) -> Tensor:
    """``[kv_heads, tokens, dim]`` -> ``[kv_heads, length, dim]``."""
    return tensor.gather(1, places[:, :, None].expand(-1, -1, tensor.shape[2]))
