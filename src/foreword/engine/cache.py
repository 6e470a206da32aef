"""The requests' own keys and values, in pages; prefixes are not in here, they are shared tensors."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from foreword.core import LayerShape
from foreword.engine.sequence import Sequence

PAGE = 16


class PagedCache:
    """A fixed pool of pages of ``PAGE`` positions for every layer.

    Attributes:
        keys, values: one ``[pages * PAGE, kv_heads, dim]`` a layer.
    """

    def __init__(self, shapes: tuple[LayerShape, ...], pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pages = pages
        rows = pages * PAGE
        self.keys = [torch.zeros(rows, s.kv_heads, s.key_dim, dtype=dtype, device=device) for s in shapes]
        self.values = [torch.zeros(rows, s.kv_heads, s.value_dim, dtype=dtype, device=device) for s in shapes]
        self._free = list(range(pages - 1, -1, -1))
        self._held: dict[Sequence, list[int]] = {}

    @staticmethod
    def pages_for(tokens: int) -> int:
        return -(-tokens // PAGE)

    @staticmethod
    def bytes_per_page(shapes: tuple[LayerShape, ...], dtype: torch.dtype) -> int:
        return PAGE * sum(s.kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize

    @property
    def free(self) -> int:
        return len(self._free)

    def can_allocate(self, sequence: Sequence) -> bool:
        return self.pages_for(sequence.limit) <= len(self._free)

    def allocate(self, sequence: Sequence) -> None:
        """All pages that the sequence can ever need, so that a running one never has to give way."""
        count = self.pages_for(sequence.limit)
        sequence.pages = [self._free.pop() for _ in range(count)]
        self._held[sequence] = sequence.pages

    def release(self, sequence: Sequence) -> None:
        self._free.extend(self._held.pop(sequence))
        sequence.pages = []

    def rows(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Places in `keys` and `values` of the sequence's own tokens ``start..end``."""
        return [sequence.pages[at // PAGE] * PAGE + at % PAGE for at in range(start, end)]

    def table(self, sequences: Items[Sequence], ends: Items[int], device: torch.device) -> Tensor:
        """Places ``[R, max(ends)]`` of the first ``ends`` own tokens of several sequences.

        Short rows repeat their last place: one that was not written yet may hold anything, even NaN, which would
        spread through a mask.
        """
        width = self.pages_for(max(ends))
        pages = [(s.pages + s.pages[-1:] * (width - len(s.pages)))[:width] for s in sequences]
        last = torch.tensor(ends, device=device)[:, None] - 1
        at = torch.minimum(torch.arange(max(ends), device=device), last)
        return torch.tensor(pages, device=device).gather(1, at // PAGE) * PAGE + at % PAGE

    def read(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[R, kv_heads, C, dim]`` at ``table [R, C]``."""
        # ``index_select`` copies whole rows and is about ten times as fast on a CPU as ``keys[table]``.
        key = self.keys[layer].index_select(0, table.flatten()).unflatten(0, table.shape)
        value = self.values[layer].index_select(0, table.flatten()).unflatten(0, table.shape)
        return key.transpose(1, 2), value.transpose(1, 2)

    def write(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key``, ``value`` ``[kv_heads, N, dim]`` at ``rows [N]``."""
        self.keys[layer][rows] = key.transpose(0, 1)
        self.values[layer][rows] = value.transpose(0, 1)

    def check(self) -> None:
        """Every page is free or held once, never both. Raises AssertionError."""
        held = [page for pages in self._held.values() for page in pages]
        assert sorted([*held, *self._free]) == list(range(self.pages)), "a page is lost or held twice"
        assert all(sequence.pages is pages for sequence, pages in self._held.items()), "pages lost their owner"
