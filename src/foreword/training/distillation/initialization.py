"""Where a distilled prefix starts: keys and values of the text itself, chosen and moved once to where they are used.

A chosen key keeps its distance from the request, so that the logits are those of the text with all else of it left out:
rotary positions are relative. The first token stands first in every start, as a sink that is never learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from foreword.attention import AttentionSpec, RaggedAttention
from foreword.core import Batch, Front, KVPrefix
from foreword.models import LanguageModel
from foreword.prompts.rotate import rotate
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import Conversation
from foreword.training.distillation.teacher_logits import batches, read

# Conversations whose attention tells which tokens of the text matter.
WATCHED = 48


@dataclass(frozen=True, eq=False)
class InitSource:
    """What a start is made from.

    Attributes:
        lm: the base model.
        document: the text.
        conversations: about it.
        length: virtual tokens.
    """

    lm: LanguageModel
    document: Document
    conversations: Sequence[Conversation]
    length: int

    def gathered(self, chosen: Sequence[Tensor]) -> KVPrefix:
        """A prefix of chosen tokens, behind which the request stands at ``length``.

        Args:
            chosen: ``[kv_heads, length]`` places among the tokens of all chunks, for every layer.

        Raises:
            UnsupportedModel: keys of the model cannot move.
        """
        keys, values = self._moved
        return KVPrefix(
            self.lm.identity,
            tuple(map(_taken, keys, chosen)),
            tuple(map(_taken, values, chosen)),
            offset=self.length,
            bos=self.document.chunks[0].prefix.bos,
        )

    @cached_property
    def _moved(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values ``[kv_heads, tokens, dim]`` of all chunks, as a request at ``length`` sees them."""
        parts = [chunk.prefix for chunk in self.document.chunks]
        moved = [rotate(self.lm, part, self.length - part.length) for part in parts]
        keys = [torch.cat(layer, dim=1) for layer in zip(*(part.keys for part in moved), strict=True)]
        values = [torch.cat(layer, dim=1) for layer in zip(*(part.values for part in moved), strict=True)]
        return keys, values

    def everywhere(self, places: Tensor) -> list[Tensor]:
        """The same ``[length]`` places in all heads of all layers."""
        return [places.expand(shape.kv_heads, -1) for shape in self.lm.identity.layers]


Initializer = Callable[[InitSource], KVPrefix]


def first(source: InitSource) -> KVPrefix:
    """The first tokens."""
    places = torch.arange(source.length, device=source.lm.device)
    return source.gathered(source.everywhere(places))


def even(source: InitSource) -> KVPrefix:
    """Tokens that are spread evenly over the text, the first one among them."""
    places = torch.arange(source.length, device=source.lm.device) * source.document.tokens // source.length
    return source.gathered(source.everywhere(places))


def attention(source: InitSource) -> KVPrefix:
    """The tokens that conversations about the text look at most, for every key head of its own."""
    masses = attention_mass(source.lm, source.document, source.conversations[:WATCHED])
    for mass in masses:
        mass[:, 0] = float("inf")
    return source.gathered([mass.topk(source.length).indices.sort().values for mass in masses])


INITIALIZERS: dict[str, Initializer] = {"attention": attention, "even": even, "first": first}


@torch.no_grad()
def attention_mass(lm: LanguageModel, document: Document, conversations: Sequence[Conversation]) -> list[Tensor]:
    """How much conversations attend to every token of the text: ``[kv_heads, tokens]`` for every layer, float32."""
    sizes = [chunk.prefix.length for chunk in document.chunks]
    masses = [torch.zeros(s.kv_heads, sum(sizes), device=lm.device) for s in lm.identity.layers]
    for numbers in batches(conversations):
        chunk = conversations[numbers[0]].chunk
        prefix = document.chunks[chunk].prefix
        batch = Batch.behind(Front(prefix), [read(conversations[n]).token_ids for n in numbers], device=lm.device)
        watch = _AttentionRecorder(batch, prefix)
        lm.hidden(batch, torch.zeros(1, dtype=torch.long, device=lm.device), attend=watch)
        begin = sum(sizes[:chunk])
        for layer, mass in watch.masses.items():
            masses[layer][:, begin : begin + prefix.length] += mass
    return masses


@dataclass
class _AttentionRecorder:
    """Attends as always, and adds up the weights of the prefix's tokens.

    Attributes:
        batch: sequences behind the prefix.
        prefix: in front of all of them.
        masses: ``[kv_heads, P]`` of every layer.
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
            # What a token gives to the text is a share of all that it gives, to the conversation so far as well.
            seen = torch.cat([stored, key[:, start:end]], dim=1).float()
            scores = spec.capped(grouped[:, :, start:end] @ seen[:, None].mT * spec.scale)
            at = torch.arange(stored.shape[1], seen.shape[1], device=query.device)[:, None]
            places = torch.arange(seen.shape[1], device=query.device)
            hidden = places > at
            scores = scores.masked_fill(hidden if window is None else hidden | (places <= at - window), float("-inf"))
            mass += scores.softmax(-1)[..., : stored.shape[1]].sum((1, 2))
        self.masses[layer] = mass
        return self._attend(layer, query, key, value, spec, window, causal)


def _taken(tensor: Tensor, places: Tensor) -> Tensor:
    """``[kv_heads, tokens, dim]`` -> ``[kv_heads, length, dim]``."""
    return tensor.gather(1, places[:, :, None].expand(-1, -1, tensor.shape[2]))
