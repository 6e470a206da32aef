"""`PagedCache`: keys and values of sequences in pages, which sequences with equal beginnings share (prefix caching).

A full page has a hash over everything that its keys and values depend on: prefix, adapter, and all tokens up to its
end. It is never written again, so sequences that need the same tokens behind the same prefix share it, at the same time
or later, until the page is evicted. Short prefixes lie in pages of their own. As vLLM's block pool
(``vllm/v1/core/block_pool.py``), with SGLang's word for a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from foreword.core import LayerShape
from foreword.engine.sequence import Sequence

PAGE_SIZE = 16
"""Positions of a page."""

MIN_PAGE_BYTES = 4096
"""A page counts as so many bytes at least: one of a model without attention holds nothing but the tokens' places."""

MAX_PAGED_PREFIX = 256
"""Prefixes up to this length are copied into pages, where requests behind different prefixes are one product."""


class PagedCache:
    """A fixed pool of pages of ``PAGE_SIZE`` positions for every layer; a `foreword.engine.scheduler.KVCacheManager`.

    A page is free (it holds nothing), in use by one or several sequences, or evictable: no sequence uses it, but its
    hash is registered and its content may be used again. Evictable pages are evicted in the order in which they were
    freed.

    Args:
        shapes: of the layers.
        num_pages: of the pool.
        reuse: whether pages of tokens are registered after they were computed; those of prefixes always are.
        chunk: share only whole chunks of this many tokens of a prompt, a multiple of ``PAGE_SIZE``: what a scheduler
            with the same chunks would compute again bit by bit.
        max_paged_prefix: longest prefix that is copied into pages; ``None`` for all.

    Attributes:
        keys, values: one ``[kv_heads * num_slots, dim]`` a layer, head after head; ``num_slots`` is
            ``num_pages * PAGE_SIZE``.
    """

    def __init__(
        self,
        shapes: tuple[LayerShape, ...],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        reuse: bool = True,
        chunk: int | None = None,
        max_paged_prefix: int | None = MAX_PAGED_PREFIX,
    ) -> None:
        self.num_pages = num_pages
        self.num_slots = num_pages * PAGE_SIZE
        self.keys = [_zeros(self.num_slots * s.kv_heads, s.key_dim, dtype, device) for s in shapes]
        self.values = [_zeros(self.num_slots * s.kv_heads, s.value_dim, dtype, device) for s in shapes]
        self.shapes, self._reuse, self._chunk, self._max_paged_prefix = shapes, reuse, chunk, max_paged_prefix
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._ref_counts = [0] * num_pages
        self._hash_of_page: dict[int, bytes] = {}
        self._page_of_hash: dict[bytes, int] = {}
        self._pages_of: dict[Sequence, list[int]] = {}

    def close(self) -> None:
        """Release the tensors: an engine is part of reference cycles, so it may stay in memory long after it was
        closed, and a run that opens many would hold a gigabyte for each."""
        self.keys, self.values = [], []

    @staticmethod
    def pages_for(tokens: int) -> int:
        """Pages that ``tokens`` positions take."""
        return -(-tokens // PAGE_SIZE)

    @staticmethod
    def bytes_per_page(shapes: tuple[LayerShape, ...], dtype: torch.dtype) -> int:
        size = PAGE_SIZE * sum(s.kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize
        return max(size, MIN_PAGE_BYTES)

    def pages_for_prefix(self, length: int) -> int:
        """Pages that a prefix of ``length`` positions takes: none if it is too long to be copied into pages."""
        copied = self._max_paged_prefix is None or length <= self._max_paged_prefix
        return self.pages_for(length) if copied else 0

    def positions_for_prefix(self, length: int) -> int:
        """Positions of the pool that a prefix of ``length`` positions takes."""
        return PAGE_SIZE * self.pages_for_prefix(length)

    @property
    def num_positions(self) -> int:
        """See `KVCacheManager.num_positions`."""
        return self.num_slots

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence uses, evictable ones included."""
        return len(self._free_pages) + len(self._evictable)

    def allocate(self, sequence: Sequence) -> bool:
        """Allocate the pages of a sequence's prefix and tokens, sharing those that hold them already.

        Sets ``sequence.num_computed_tokens`` to the tokens found in shared pages; at least one token is left to run.
        False, and nothing changes, if there is no room.
        """
        prefix_pages = self._shared_prefix_pages(sequence)
        shared = self._shared_token_pages(sequence)
        total = self._num_prefix_pages(sequence) + self.pages_for(sequence.num_tokens)
        evictable = sum(1 for page in (*prefix_pages, *shared) if not self._ref_counts[page])
        if total - len(prefix_pages) - len(shared) > self.num_free_pages - evictable:
            return False
        for page in (*prefix_pages, *shared):
            self._evictable.pop(page, None)
            self._ref_counts[page] += 1
        self._pages_of[sequence] = [*prefix_pages, *shared]
        sequence.pages = shared
        try:
            sequence.prefix_pages = prefix_pages or self._copy_prefix(sequence)
        except Exception:  # a prefix that does not fit the cache
            self.free(sequence)
            raise
        sequence.num_computed_tokens = len(shared) * PAGE_SIZE
        self._append_pages(sequence)
        return True

    def extend(self, sequence: Sequence) -> bool:
        """Allocate pages up to the newest token of an allocated sequence; False if there are not enough."""
        missing = self.pages_for(sequence.num_tokens) - len(sequence.pages)
        if missing > self.num_free_pages:
            return False
        if missing > 0:
            self._append_pages(sequence)
        return True

    def cache_tokens(self, sequence: Sequence) -> None:
        """Register the hashes of the sequence's full computed pages, so that other sequences can share them."""
        if not self._reuse:
            return
        computed = sequence.num_computed_tokens
        if self._chunk is not None:  # a prompt's last tokens, and its answer, are run in other shapes
            computed = min(computed, len(sequence.request.token_ids) // self._chunk * self._chunk)
        for index in range(len(sequence.page_hashes), computed // PAGE_SIZE):
            page, page_hash = sequence.pages[index], self._page_hash(sequence, index)
            sequence.page_hashes.append(page_hash)
            if page_hash not in self._page_of_hash:
                self._page_of_hash[page_hash] = page
                self._hash_of_page[page] = page_hash

    def free(self, sequence: Sequence) -> None:
        """Free the pages of a sequence; those with a registered hash become evictable."""
        # The end first: a page is of no use without those before it.
        for page in reversed(self._pages_of.pop(sequence)):
            self._ref_counts[page] -= 1
            if not self._ref_counts[page]:
                if page in self._hash_of_page:
                    self._evictable[page] = None
                else:
                    self._free_pages.append(page)
        sequence.pages, sequence.prefix_pages, sequence.num_computed_tokens = [], [], 0
        sequence.page_hashes, sequence.slots, sequence.states = [], sequence.slots[:0], None

    def slot_table(self, sequences: Items[Sequence], ends: Items[int], skipped: Items[int]) -> np.ndarray:
        """Slots ``[R, C]`` of each sequence's paged prefix and its own tokens up to ``ends``, without the first
        ``skipped``.

        Short rows repeat their last slot: one that was not written yet may hold anything, even NaN, which would spread
        through a mask.
        """
        rows = [
            sequence.slots[skip : sequence.paged_prefix_length + end]
            for sequence, end, skip in zip(sequences, ends, skipped, strict=True)
        ]
        table = np.empty((len(rows), max(map(len, rows))), dtype=np.int64)
        for index, slots in enumerate(rows):
            table[index, : len(slots)] = slots
            table[index, len(slots) :] = slots[-1]
        return table

    def head_slots(self, slots: Tensor, kv_heads: int) -> Tensor:
        """Row numbers in `keys` and `values` of ``slots [R, C]`` for every head: ``[R * kv_heads * C]``."""
        heads = torch.arange(kv_heads, device=slots.device) * self.num_slots
        return (slots[:, None, :] + heads[None, :, None]).flatten()

    def gather(self, side: Items[Tensor], slots: Tensor) -> Iterator[Tensor]:
        """``[R, kv_heads, C, dim]`` of `keys` or `values` of every layer at ``slots [R, C]``."""
        rows, count = slots.shape
        head_slots: dict[int, Tensor] = {}
        for stored, shape in zip(side, self.shapes, strict=True):
            if shape.kv_heads not in head_slots:
                head_slots[shape.kv_heads] = self.head_slots(slots, shape.kv_heads)
            found = stored.index_select(0, head_slots[shape.kv_heads])
            yield found.view(rows, shape.kv_heads, count, stored.shape[1])

    def scatter(self, side: Items[Tensor], slots: Tensor, new: Iterable[Tensor]) -> None:
        """Write ``[kv_heads, N, dim]`` of every layer to ``slots [N]`` of `keys` or `values`."""
        for stored, shape, own in zip(side, self.shapes, new, strict=True):
            if stored.numel():
                stored.index_copy_(0, self.head_slots(slots[None], shape.kv_heads), own.flatten(0, 1).to(stored))

    def statistics(self) -> dict[str, float]:
        """``pages`` and ``free_pages``."""
        return {"pages": self.num_pages, "free_pages": self.num_free_pages}

    def check(self) -> None:
        """Check the invariants: every page is free, evictable or in use; references are counted; hashes are registered
        both ways; a page that is still written has one user and no hash.

        Raises AssertionError.
        """
        ref_counts = [0] * self.num_pages
        for sequence, pages in self._pages_of.items():
            assert len(set(pages)) == len(pages), "a sequence has a page twice"
            assert sorted(pages) == sorted([*sequence.prefix_pages, *sequence.pages]), "a page lost its owner"
            for page in pages:
                ref_counts[page] += 1
        assert ref_counts == self._ref_counts, "references are counted wrongly"
        used = [page for page, ref_count in enumerate(ref_counts) if ref_count]
        every = sorted([*used, *self._evictable, *self._free_pages])
        assert every == list(range(self.num_pages)), "a page is lost or in two states"
        assert {page: key for key, page in self._page_of_hash.items()} == self._hash_of_page, "a hash is lost"
        assert set(self._evictable) <= set(self._hash_of_page), "an evictable page has no hash"
        assert not set(self._free_pages) & set(self._hash_of_page), "a free page has a hash"
        written = [page for s in self._pages_of for page in s.pages[s.num_computed_tokens // PAGE_SIZE :]]
        assert all(self._ref_counts[page] == 1 for page in written), "a page that is written is shared"
        assert not set(written) & set(self._hash_of_page), "a page that is written has a hash"

    def _num_prefix_pages(self, sequence: Sequence) -> int:
        return self.pages_for_prefix(sequence.prefix.length) if sequence.prefix is not None else 0

    def _append_pages(self, sequence: Sequence) -> None:
        """Give a sequence new pages up to its newest token, and set its slots."""
        for _ in range(self.pages_for(sequence.num_tokens) - len(sequence.pages)):
            sequence.pages.append(self._new_page(sequence))
        prefix_slots = _slots(sequence.prefix_pages)[: sequence.paged_prefix_length]
        sequence.slots = np.concatenate([prefix_slots, _slots(sequence.pages)])

    def _new_page(self, sequence: Sequence) -> int:
        """A free page, or else the one that was evictable longest, for a sequence."""
        if self._free_pages:
            page = self._free_pages.pop()
        else:
            page, _ = self._evictable.popitem(last=False)
            del self._page_of_hash[self._hash_of_page.pop(page)]
        self._ref_counts[page] = 1
        self._pages_of[sequence].append(page)
        return page

    def _shared_token_pages(self, sequence: Sequence) -> list[int]:
        """Registered pages of the sequence's leading tokens, its last token excluded; sets their hashes."""
        sequence.page_hashes = []
        pages: list[int] = []
        while (len(pages) + 1) * PAGE_SIZE < sequence.num_tokens:
            page_hash = self._page_hash(sequence, len(pages))
            if page_hash not in self._page_of_hash:
                break
            sequence.page_hashes.append(page_hash)
            pages.append(self._page_of_hash[page_hash])
        if self._chunk is not None:
            whole = len(pages) * PAGE_SIZE // self._chunk * self._chunk // PAGE_SIZE
            del pages[whole:], sequence.page_hashes[whole:]
        return pages

    def _page_hash(self, sequence: Sequence, index: int) -> bytes:
        """Hash of the page's tokens and of the hash of the page before it."""
        parent = sequence.page_hashes[index - 1] if index else sequence.root_hash
        tokens = np.asarray(sequence.token_ids(index * PAGE_SIZE, (index + 1) * PAGE_SIZE), dtype=np.int64)
        return blake2b(parent + tokens.tobytes(), digest_size=32).digest()

    def _prefix_hashes(self, sequence: Sequence) -> Iterator[bytes]:
        """Hashes of the pages of the sequence's prefix, which is the bank's and holds nothing of any request."""
        for index in range(self._num_prefix_pages(sequence)):
            name = f"prefix/{sequence.prefix.digest}/{index}" if sequence.prefix is not None else ""
            yield blake2b(name.encode(), digest_size=32).digest()

    def _shared_prefix_pages(self, sequence: Sequence) -> list[int]:
        """Registered pages of the sequence's prefix; none unless all are registered."""
        pages = [self._page_of_hash.get(page_hash) for page_hash in self._prefix_hashes(sequence)]
        return [page for page in pages if page is not None] if None not in pages else []

    def _copy_prefix(self, sequence: Sequence) -> list[int]:
        """Copy the sequence's prefix into new pages and register them; returns the pages."""
        hashes = list(self._prefix_hashes(sequence))
        if not hashes or sequence.prefix is None:
            return []
        pages = [self._new_page(sequence) for _ in hashes]
        slots = torch.from_numpy(_slots(pages)[: sequence.prefix.length]).to(self.keys[0].device)
        self.scatter(self.keys, slots, sequence.prefix.keys)
        self.scatter(self.values, slots, sequence.prefix.values)
        for page_hash, page in zip(hashes, pages, strict=True):
            # The prefix may still be in other pages, of which some were evicted: the new ones take over the hashes.
            if (old := self._page_of_hash.pop(page_hash, None)) is not None:
                self._unregister(old)
            self._page_of_hash[page_hash] = page
            self._hash_of_page[page] = page_hash
        return pages

    def _unregister(self, page: int) -> None:
        """Drop the hash of a page; an evictable page becomes free."""
        del self._hash_of_page[page]
        if page in self._evictable:
            del self._evictable[page]
            self._free_pages.append(page)


def _slots(pages: Items[int]) -> np.ndarray:
    """Slots of all positions of some pages, in order."""
    return (np.asarray(pages, dtype=np.int64)[:, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).reshape(-1)


_ALIGNMENT = 64
"""Bytes that the address of a row should be a multiple of, for vector instructions."""


def _zeros(rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[rows, dim]`` of zeros. On a CPU, memory that was never written takes no room (``calloc``), where torch would
    write all the zeros."""
    if device.type != "cpu":
        return torch.zeros(rows, dim, dtype=dtype, device=device)
    size = rows * dim * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
    skipped = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[skipped : skipped + size]).view(dtype).view(rows, dim)
