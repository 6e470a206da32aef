"""`CellAllocator`: assigns cells of llama.cpp's KV cache to sequences; sequences share the cells of a prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreword.core import KVPrefix
from foreword.engine.sequence import Sequence
from foreword.errors import RequestError
from foreword.llamacpp.compat import MAX_SEQUENCES, Session
from foreword.llamacpp.key_layout import KeyLayout
from foreword.llamacpp.sequence_state import SequenceState


@dataclass(eq=False)
class ResidentPrefix:
    """A prefix in the cache.

    Attributes:
        seq_id: llama.cpp's sequence that holds it.
        length: its positions.
        ref_count: sequences that share it now; at 0 it may be evicted.
    """

    seq_id: int
    length: int
    ref_count: int = 0


@dataclass(eq=False)
class SequenceCells:
    """What is allocated to one sequence.

    Attributes:
        seq_id: llama.cpp's sequence.
        num_cells: its own cells, without those of its prefix.
        prefix: the prefix that it shares, or ``None``.
    """

    seq_id: int
    num_cells: int
    prefix: ResidentPrefix | None


class CellAllocator:
    """The cache of a session: a `foreword.engine.scheduler.KVCacheManager`, which also allocates cells for scoring.

    A prefix that no sequence shares stays until its cells are needed; the least recently used is evicted first.

    Attributes:
        num_prefixes_written: counter since the start.
        admission_paused: no sequence is admitted, because a scoring job waits for room.
    """

    def __init__(self, session: Session, key_layout: KeyLayout) -> None:
        self.num_prefixes_written = 0
        self.admission_paused = False
        self._session, self._key_layout = session, key_layout
        self._free_seq_ids = list(range(MAX_SEQUENCES - 1, -1, -1))
        self._num_used = 0
        self._prefixes: OrderedDict[str, ResidentPrefix] = OrderedDict()
        self._allocated: dict[Sequence, SequenceCells] = {}

    @property
    def num_positions(self) -> int:
        """See `foreword.engine.scheduler.KVCacheManager`."""
        return self._session.num_cells

    @property
    def num_free(self) -> int:
        """Cells that no sequence holds, those of evictable prefixes included."""
        # A copy, because any thread may read this while the engine's goes on.
        evictable = [prefix.length for prefix in tuple(self._prefixes.values()) if not prefix.ref_count]
        return self._session.num_cells - self._num_used + sum(evictable)

    def seq_id(self, sequence: Sequence) -> int:
        """llama.cpp's id of an allocated sequence."""
        return self._allocated[sequence].seq_id

    def allocate(self, sequence: Sequence) -> bool:
        """See `foreword.engine.scheduler.KVCacheManager`. Writes the prefix if it is not in the cache."""
        if self.admission_paused:
            return False
        request = sequence.request
        cells = self.allocate_cells(sequence.num_tokens, request.prefix, request.prefix_length)
        if cells is None:
            return False
        self._allocated[sequence] = cells
        sequence.num_computed_tokens = 0
        return True

    def extend(self, sequence: Sequence) -> bool:
        """See `foreword.engine.scheduler.KVCacheManager`."""
        cells = self._allocated[sequence]
        missing = sequence.num_tokens - cells.num_cells
        if not self._evict_for(missing, 0):
            return False
        cells.num_cells += missing
        self._num_used += missing
        return True

    def cache_tokens(self, sequence: Sequence) -> None:
        """Does nothing: only prefixes are shared here."""

    def free(self, sequence: Sequence) -> None:
        """See `foreword.engine.scheduler.KVCacheManager`."""
        self.free_cells(self._allocated.pop(sequence))

    def make_room(self, prompts: Items[tuple[int, KVPrefix | None]], num_sequences: int) -> bool:
        """Evict prefixes until several prompts can be allocated together; False, and none is evicted, if they cannot.

        Args:
            prompts: own cells and prefix of each; prefixes in the cache are kept.
            num_sequences: that they need.
        """
        prefixes = {prefix.digest: prefix.length for _, prefix in prompts if prefix is not None}
        kept = prefixes.keys() & self._prefixes.keys()
        for digest in kept:
            self._prefixes.move_to_end(digest)
        new = [length for digest, length in prefixes.items() if digest not in kept]
        return self._evict_for(sum(own for own, _ in prompts) + sum(new), num_sequences + len(new), kept)

    def allocate_cells(self, num_cells: int, prefix: KVPrefix | None, prefix_length: int) -> SequenceCells | None:
        """A sequence with cells for ``num_cells`` tokens behind the first positions of a prefix.

        ``None``, and nothing changes, if there is no room.
        """
        prefix = prefix if prefix_length else None
        if not self.make_room([(num_cells, prefix)], 1):
            return None
        resident = self._load(prefix) if prefix is not None else None
        seq_id = self._free_seq_ids.pop()
        if resident is not None:
            self._session.share(resident.seq_id, seq_id, prefix_length)
            resident.ref_count += 1
        self._num_used += num_cells
        return SequenceCells(seq_id, num_cells, resident)

    def fork(self, cells: SequenceCells, length: int, num_cells: int) -> SequenceCells:
        """Another sequence that shares the first ``length`` positions of one; there must be room."""
        seq_id = self._free_seq_ids.pop()
        self._session.share(cells.seq_id, seq_id, length)
        self._num_used += num_cells
        return SequenceCells(seq_id, num_cells, None)

    def free_cells(self, cells: SequenceCells) -> None:
        """Clear a sequence; its prefix stays until it is evicted."""
        self._session.clear(cells.seq_id)
        self._free_seq_ids.append(cells.seq_id)
        self._num_used -= cells.num_cells
        if cells.prefix is not None:
            cells.prefix.ref_count -= 1

    def check(self) -> None:
        """Raise AssertionError unless the counters agree with what is allocated."""
        own = sum(cells.num_cells for cells in self._allocated.values())
        assert self._num_used == own + sum(p.length for p in self._prefixes.values()), "cells are counted wrongly"
        assert self._num_used <= self._session.num_cells, "more cells are allocated than there are"
        taken = [each.seq_id for each in (*self._allocated.values(), *self._prefixes.values())]
        assert sorted([*taken, *self._free_seq_ids]) == list(range(MAX_SEQUENCES)), "a sequence is lost or held twice"
        for prefix in self._prefixes.values():
            count = sum(cells.prefix is prefix for cells in self._allocated.values())
            assert prefix.ref_count == count, "references are counted wrongly"

    def _evict_for(self, num_cells: int, num_sequences: int, kept: Collection[str] = ()) -> bool:
        """Evict prefixes until so many cells and sequences are free; False, and none is evicted, if that cannot be."""
        evictable = [digest for digest, p in self._prefixes.items() if not p.ref_count and digest not in kept]
        reclaimable = sum(self._prefixes[digest].length for digest in evictable)
        if self._num_used + num_cells - reclaimable > self._session.num_cells:
            return False
        if num_sequences > len(self._free_seq_ids) + len(evictable):
            return False
        for digest in evictable:
            if self._num_used + num_cells <= self._session.num_cells and num_sequences <= len(self._free_seq_ids):
                break
            prefix = self._prefixes.pop(digest)
            self._session.clear(prefix.seq_id)
            self._free_seq_ids.append(prefix.seq_id)
            self._num_used -= prefix.length
        return True

    def _load(self, prefix: KVPrefix) -> ResidentPrefix:
        """The prefix in the cache, as the most recently used one; written if it is not there."""
        resident = self._prefixes.get(prefix.digest)
        if resident is None:
            state = self._state(prefix)
            resident = ResidentPrefix(self._free_seq_ids[-1], prefix.length)
            self._session.set_state(resident.seq_id, state.to_bytes(resident.seq_id))
            self._free_seq_ids.pop()
            self._prefixes[prefix.digest] = resident
            self._num_used += prefix.length
            self.num_prefixes_written += 1
        self._prefixes.move_to_end(prefix.digest)
        return resident

    def _state(self, prefix: KVPrefix) -> SequenceState:
        dtype = self._session.dtype
        keys = tuple(self._key_layout.to_cache(_as_array(key, dtype)) for key in prefix.keys)
        values = tuple(np.moveaxis(_as_array(value, dtype), 0, 1).reshape(prefix.length, -1) for value in prefix.values)
        return SequenceState(np.arange(prefix.length, dtype=np.int32), keys, values)


def check_range(prefix: KVPrefix, dtype: np.dtype) -> None:
    """Raise RequestError for a prefix with numbers beyond the range of the cache's dtype."""
    if not all(np.isfinite(_as_array(tensor, dtype)).all() for tensor in (*prefix.keys, *prefix.values)):
        raise RequestError(
            f"the prefix of this request holds numbers beyond {float(np.finfo(dtype).max):,.6g}, which llama.cpp's "
            f"{dtype} cache cannot; serve it with --engine embedded."
        )


def _as_array(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """A bank's tensor, read by numpy or by PyTorch, in the cache's dtype."""
    array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().float().cpu().numpy()
    with np.errstate(over="ignore"):
        return array.astype(dtype)
