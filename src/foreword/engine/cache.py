"""Keys and values of requests in pages, which requests that begin alike share.

A page that is full is known by a key: a hash over everything that its keys and values depend on (prefix, adapter, and
all tokens up to its end). Nobody writes to it again, so whoever needs the same tokens behind the same prefix holds it
too, while others use it or afterwards, until its place is needed. Short prefixes lie in pages of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Items
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from foreword.core import LayerShape
from foreword.engine.sequence import Sequence

PAGE = 16
# Prefixes up to this length are copied into pages, where the requests behind different ones are one product together.
POOLED = 256


class PagedCache:
    """A fixed pool of pages of ``PAGE`` positions for every layer.

    A page is free (it holds nothing), held by one or several sequences, or idle: nobody holds it, but its content is
    known by a key and may be used again. Idle pages are given away in the order in which they were let go.

    Args:
        reuse: whether pages of tokens are known after they were computed; those of prefixes always are.

    Attributes:
        keys, values: one ``[kv_heads * pages * PAGE, dim]`` a layer, head after head.
    """

    def __init__(
        self,
        shapes: tuple[LayerShape, ...],
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        reuse: bool = True,
    ) -> None:
        self.pages = pages
        self.rows = pages * PAGE
        self.keys = [torch.zeros(self.rows * s.kv_heads, s.key_dim, dtype=dtype, device=device) for s in shapes]
        self.values = [torch.zeros(self.rows * s.kv_heads, s.value_dim, dtype=dtype, device=device) for s in shapes]
        self._shapes, self._reuse = shapes, reuse
        self._unused = list(range(pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * pages
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._held: dict[Sequence, list[int]] = {}

    def close(self) -> None:
        """Let go of all keys and values: an engine is part of cycles, so it may stay long after it was closed, and a
        run that opens many would hold a gigabyte for each."""
        self.keys, self.values = [], []

    @staticmethod
    def pages_for(tokens: int) -> int:
        return -(-tokens // PAGE)

    @staticmethod
    def bytes_per_page(shapes: tuple[LayerShape, ...], dtype: torch.dtype) -> int:
        return PAGE * sum(s.kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize

    @staticmethod
    def pages_in_front(length: int) -> int:
        """Pages that a prefix of so many positions takes: none if it is too long to lie in pages."""
        return PagedCache.pages_for(length) if length <= POOLED else 0

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._unused) + len(self._idle)

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence the pages of its prefix and of its tokens so far, those that are known already with their
        content; False, and nothing happens, if there is no room.

        Sets ``sequence.computed`` to the tokens whose keys and values are there. One token at least is left to run.
        """
        front = self._known_front(sequence)
        known = self._known(sequence)
        needed = self._pages_in_front(sequence) + self.pages_for(sequence.length) - len(front) - len(known)
        idle = sum(1 for page in (*front, *known) if not self._holders[page])
        if needed > self.free - idle:
            return False
        for page in (*front, *known):
            self._hold(page)
        self._held[sequence] = held = [*front, *known]
        sequence.pages = known
        sequence.front = front or self._copied_front(sequence, held)
        sequence.computed = len(known) * PAGE
        self._take(sequence, held)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Pages for the newest token of an admitted sequence; False if there is none left."""
        missing = self.pages_for(sequence.length) - len(sequence.pages)
        if missing > self.free:
            return False
        if missing > 0:
            self._take(sequence, self._held[sequence])
        return True

    def remember(self, sequence: Sequence) -> None:
        """Make the full pages of a sequence known, now that they are computed."""
        if not self._reuse:
            return
        for index in range(len(sequence.keys), sequence.computed // PAGE):
            key = self._chain(sequence, index)
            sequence.keys.append(key)
            if key not in self._page_of:
                self._page_of[key] = sequence.pages[index]
                self._key_of[sequence.pages[index]] = key

    def release(self, sequence: Sequence) -> None:
        """Let go of everything that a sequence holds; what is known stays until its place is needed."""
        # The end first: a page is of no use without those before it.
        for page in reversed(self._held.pop(sequence)):
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._unused.append(page)
        sequence.pages, sequence.front, sequence.computed = [], [], 0
        sequence.keys, sequence.rows = [], sequence.rows[:0]

    def table(self, sequences: Items[Sequence], ends: Items[int], skipped: Items[int]) -> np.ndarray:
        """Rows ``[R, C]`` of each sequence's prefix in pages and of its first ``ends`` own tokens, without the first
        ``skipped``.

        Short rows repeat their last place: one that was not written yet may hold anything, even NaN, which would
        spread through a mask.
        """
        found = [
            sequence.rows[skip : sequence.front_length + end]
            for sequence, end, skip in zip(sequences, ends, skipped, strict=True)
        ]
        table = np.empty((len(found), max(map(len, found))), dtype=np.int64)
        for place, rows in enumerate(found):
            table[place, : len(rows)] = rows
            table[place, len(rows) :] = rows[-1]
        return table

    def every_head(self, rows: Tensor, kv_heads: int) -> Tensor:
        """Places in `keys` and `values` of ``rows [R, C]``: ``[R * kv_heads * C]``."""
        heads = torch.arange(kv_heads, device=rows.device) * self.rows
        return (rows[:, None, :] + heads[None, :, None]).flatten()

    def check(self) -> None:
        """Every page is free, idle or held, its holders are counted, and what is known is where it is said to be.

        Raises AssertionError.
        """
        holders = [0] * self.pages
        for sequence, pages in self._held.items():
            assert len(set(pages)) == len(pages), "a sequence holds a page twice"
            assert sorted(pages) == sorted([*sequence.front, *sequence.pages]), "pages lost their owner"
            for page in pages:
                holders[page] += 1
        assert holders == self._holders, "holders are counted wrongly"
        held = [page for page, count in enumerate(holders) if count]
        assert sorted([*held, *self._idle, *self._unused]) == list(range(self.pages)), "a page is lost or held twice"
        assert {page: key for key, page in self._page_of.items()} == self._key_of, "a key is lost"
        assert set(self._idle) <= set(self._key_of), "an idle page is unknown"
        assert not set(self._unused) & set(self._key_of), "a free page is known"
        writing = [s.pages[at] for s in self._held for at in range(s.computed // PAGE, len(s.pages))]
        assert all(self._holders[page] == 1 for page in writing), "a page that is written is shared"
        assert not set(writing) & set(self._key_of), "a page that is written is known"

    def _pages_in_front(self, sequence: Sequence) -> int:
        return self.pages_in_front(sequence.prefix.length) if sequence.prefix is not None else 0

    def _hold(self, page: int) -> None:
        self._idle.pop(page, None)
        self._holders[page] += 1

    def _take(self, sequence: Sequence, held: list[int]) -> None:
        """Fresh pages up to the sequence's newest token."""
        for _ in range(self.pages_for(sequence.length) - len(sequence.pages)):
            page = self._fresh()
            held.append(page)
            sequence.pages.append(page)
        front = _rows(sequence.front)[: sequence.front_length]
        sequence.rows = np.concatenate([front, _rows(sequence.pages)])

    def _fresh(self) -> int:
        if self._unused:
            page = self._unused.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self._holders[page] = 1
        return page

    def _known(self, sequence: Sequence) -> list[int]:
        """Pages of the sequence's leading tokens that are there already, but for the last token."""
        sequence.keys = []
        found: list[int] = []
        while (len(found) + 1) * PAGE < sequence.length:
            key = self._chain(sequence, len(found))
            if key not in self._page_of:
                break
            sequence.keys.append(key)
            found.append(self._page_of[key])
        return found

    def _chain(self, sequence: Sequence, index: int) -> bytes:
        before = sequence.keys[index - 1] if index else sequence.root
        tokens = np.asarray(sequence.tokens(index * PAGE, (index + 1) * PAGE), dtype=np.int64)
        return blake2b(before + tokens.tobytes(), digest_size=32).digest()

    def _front_keys(self, sequence: Sequence) -> Iterator[bytes]:
        for index in range(self._pages_in_front(sequence)):
            yield blake2b(sequence.root + b"prefix" + index.to_bytes(4, "little"), digest_size=32).digest()

    def _known_front(self, sequence: Sequence) -> list[int]:
        """Pages of the sequence's prefix; none unless all are there."""
        pages = [self._page_of.get(key) for key in self._front_keys(sequence)]
        return [page for page in pages if page is not None] if None not in pages else []

    def _copied_front(self, sequence: Sequence, held: list[int]) -> list[int]:
        """Copy a prefix into fresh pages."""
        keys = list(self._front_keys(sequence))
        if not keys or sequence.prefix is None:
            return []
        pages = [self._fresh() for _ in keys]
        held += pages
        rows = torch.from_numpy(_rows(pages)[: sequence.prefix.length]).to(self.keys[0].device)
        for layer, (key, value) in enumerate(zip(sequence.prefix.keys, sequence.prefix.values, strict=True)):
            at = self.every_head(rows[None], self._shapes[layer].kv_heads)
            self.keys[layer].index_copy_(0, at, key.flatten(0, 1))
            self.values[layer].index_copy_(0, at, value.flatten(0, 1))
        for key, page in zip(keys, pages, strict=True):
            # The same prefix in other pages, some of which were given away: the newer ones are known from now on.
            if (old := self._page_of.pop(key, None)) is not None:
                self._forget(old)
            self._page_of[key] = page
            self._key_of[page] = key
        return pages

    def _forget(self, page: int) -> None:
        del self._key_of[page]
        if page in self._idle:
            del self._idle[page]
            self._unused.append(page)


def _rows(pages: Items[int]) -> np.ndarray:
    """Rows of all positions of some pages, in order."""
    return (np.asarray(pages, dtype=np.int64)[:, None] * PAGE + np.arange(PAGE)).reshape(-1)
