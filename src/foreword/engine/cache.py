"""The requests' own keys and values, in pages; prefixes are not in here, they are shared tensors."""

from __future__ import annotations

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
        self._held: dict[int, list[int]] = {}

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
        self._held[sequence.id] = sequence.pages

    def release(self, sequence: Sequence) -> None:
        self._free.extend(self._held.pop(sequence.id))
        sequence.pages = []

    def rows(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Places in `keys` and `values` of the sequence's own tokens ``start..end``."""
        return [sequence.pages[at // PAGE] * PAGE + at % PAGE for at in range(start, end)]

    def write(self, layer: int, rows: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key``, ``value`` ``[kv_heads, N, dim]`` at ``rows [N]``."""
        self.keys[layer][rows] = key.transpose(0, 1)
        self.values[layer][rows] = value.transpose(0, 1)

    def check(self) -> None:
        """Every page is free or held once, never both. Raises AssertionError."""
        held = [page for pages in self._held.values() for page in pages]
        assert sorted([*held, *self._free]) == list(range(self.pages)), "a page is lost or held twice"
