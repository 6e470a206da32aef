"""`DecoderRows`: what a decoder keeps of sequences that run in one padded batch."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import Cache

from foreword.engine.sequence import Sequence
from foreword.models.encoder_decoder import EncodedTexts, filled_cache


@dataclass(eq=False)
class DecoderRows:
    """Keys and values of the decoder's self-attention and cross-attention, a row for each sequence.

    Attributes:
        sequences: one a row.
        lengths: positions of every row's self-attention cache; shorter rows are padded in front.
        encoded: texts of the rows, padded behind.
        cache: their keys and values, in Transformers' form.
    """

    sequences: list[Sequence]
    lengths: list[int]
    encoded: EncodedTexts
    cache: EncoderDecoderCache

    @property
    def text_lengths(self) -> list[int]:
        """Positions of every row's text."""
        return self.encoded.mask.sum(1).tolist()

    @property
    def cache_mask(self) -> Tensor | None:
        """``[R, T]``, 0 where a row's self-attention cache is padding; ``None`` if nothing is."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        lengths = torch.tensor(self.lengths, device=self.encoded.mask.device)
        return (torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]).long()

    def select(self, rows: Items[int]) -> DecoderRows:
        """Some of the rows, no longer than the longest of them."""
        index = torch.tensor(rows, device=self.encoded.mask.device)
        lengths = [self.lengths[row] for row in rows]
        skipped = max(self.lengths) - max(lengths)
        mask = self.encoded.mask[index]
        mask = mask[:, : int(mask.sum(1).max())]
        own = [(k[index, :, skipped:], v[index, :, skipped:]) for k, v in _pairs(self.cache.self_attention_cache)]
        width = mask.shape[1]
        cross = [(k[index, :, :width], v[index, :, :width]) for k, v in _pairs(self.cache.cross_attention_cache)]
        encoded = EncodedTexts.forgotten(mask, self.encoded.states)
        cache = EncoderDecoderCache(filled_cache(own), filled_cache(cross))
        return DecoderRows([self.sequences[row] for row in rows], lengths, encoded, cache)

    @classmethod
    def concat(cls, parts: Items[DecoderRows]) -> DecoderRows:
        """The rows of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        longest = max(max(part.lengths) for part in parts)
        width = max(part.encoded.mask.shape[1] for part in parts)
        mask = torch.cat([F.pad(part.encoded.mask, (0, width - part.encoded.mask.shape[1])) for part in parts])
        caches = [part.cache for part in parts]
        own = _concat(
            [_pairs(cache.self_attention_cache) for cache in caches],
            [(longest - max(part.lengths), 0) for part in parts],
        )
        cross = _concat(
            [_pairs(cache.cross_attention_cache) for cache in caches],
            [(0, width - part.encoded.mask.shape[1]) for part in parts],
        )
        return cls(
            [sequence for part in parts for sequence in part.sequences],
            [length for part in parts for length in part.lengths],
            EncodedTexts.forgotten(mask, parts[0].encoded.states),
            EncoderDecoderCache(filled_cache(own), filled_cache(cross)),
        )


Pairs = list[tuple[Tensor, Tensor]]
"""Keys and values ``[R, kv_heads, T, dim]``, one pair a layer."""


def _pairs(cache: Cache) -> Pairs:
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers if layer.is_initialized]


def _concat(parts: Items[Pairs], padding: Items[tuple[int, int]]) -> Pairs:
    """The rows of several batches, each with positions added in front and behind."""

    def joined(tensors: Items[Tensor]) -> Tensor:
        return torch.cat([F.pad(each, (0, 0, *around)) for each, around in zip(tensors, padding, strict=True)])

    layers = zip(*parts, strict=True)
    return [(joined([key for key, _ in layer]), joined([value for _, value in layer])) for layer in layers]
