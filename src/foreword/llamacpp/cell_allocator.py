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
from foreword.llamacpp.compat import SEQUENCES, Session
from foreword.llamacpp.key_layout import KeyLayout
from foreword.llamacpp.sequence_state import SequenceState


@dataclass(eq=False)
class ResidentPrefix:
    """A prefix in the cache.

    Attributes:
        number: llama.cpp's sequence that keeps it.
        length: its positions.
        holders: sequences that share it now; with none it may give way.
    """

    number: int
    length: int
    holders: int = 0


@dataclass(eq=False)
class SequenceCells:
    """What one sequence has.

    Attributes:
        number: llama.cpp's sequence.
        cells: of its own, beside its prefix.
        resident: its prefix, or ``None``.
    """

    number: int
    cells: int
    resident: ResidentPrefix | None


class CellAllocator:
    """The cache of a session: a `foreword.engine.scheduler.KVCacheManager`, and room for what is scored.

    Prefixes that nobody shares stay until their cells are needed, least recently used first.

    Attributes:
        injected: how often a prefix was written.
        held_back: no sequence is admitted, because something that is scored waits for room.
    """

    def __init__(self, session: Session, order: KeyLayout) -> None:
        self.injected = 0
        self.held_back = False
        self._session, self._order = session, order
        self._numbers = list(range(SEQUENCES - 1, -1, -1))
        self._used = 0
        self._residents: OrderedDict[str, ResidentPrefix] = OrderedDict()
        self._held: dict[Sequence, SequenceCells] = {}

    @property
    def num_free(self) -> int:
        """Cells that nobody holds; those of idle prefixes among them."""
        # A copy, because anybody may ask while the engine's thread goes on.
        idle = [resident.length for resident in tuple(self._residents.values()) if not resident.holders]
        return self._session.cells - self._used + sum(idle)

    def number(self, sequence: Sequence) -> int:
        """llama.cpp's number of an admitted sequence."""
        return self._held[sequence].number

    def allocate(self, sequence: Sequence) -> bool:
        """See `foreword.engine.scheduler.KVCacheManager`. Writes the prefix if it is not there."""
        if self.held_back:
            return False
        request = sequence.request
        holding = self.take(sequence.num_tokens, request.prefix, request.prefix_length)
        if holding is None:
            return False
        self._held[sequence] = holding
        sequence.num_computed_tokens = 0
        return True

    def extend(self, sequence: Sequence) -> bool:
        """See `foreword.engine.scheduler.KVCacheManager`."""
        holding = self._held[sequence]
        missing = sequence.num_tokens - holding.cells
        if not self._make_room(missing, 0):
            return False
        holding.cells += missing
        self._used += missing
        return True

    def cache_tokens(self, sequence: Sequence) -> None:
        """Nothing: only prefixes are shared here."""

    def free(self, sequence: Sequence) -> None:
        """See `foreword.engine.scheduler.KVCacheManager`."""
        self.give_back(self._held.pop(sequence))

    def room_for(self, wanted: Items[tuple[int, KVPrefix | None]], numbers: int) -> bool:
        """Whether several could be taken at once, by own cells and prefix; idle prefixes give way.

        Args:
            numbers: sequences that they take.
        """
        prefixes = {prefix.digest: prefix.length for _, prefix in wanted if prefix is not None}
        new = {digest: length for digest, length in prefixes.items() if digest not in self._residents}
        for digest in prefixes.keys() - new.keys():
            self._residents.move_to_end(digest)
        kept = prefixes.keys() - new.keys()
        return self._make_room(sum(own for own, _ in wanted) + sum(new.values()), numbers + len(new), kept)

    def take(self, cells: int, prefix: KVPrefix | None, length: int) -> SequenceCells | None:
        """A sequence with room for ``cells`` tokens behind the first ``length`` positions of a prefix; ``None``, and
        nothing happens, if there is no room."""
        prefix = prefix if length else None
        if not self.room_for([(cells, prefix)], 1):
            return None
        resident = self._resident(prefix) if prefix is not None else None
        number = self._numbers.pop()
        if resident is not None:
            self._session.share(resident.number, number, length)
            resident.holders += 1
        self._used += cells
        return SequenceCells(number, cells, resident)

    def branch(self, holding: SequenceCells, length: int, cells: int) -> SequenceCells:
        """Another sequence that begins with the first ``length`` positions of one; there must be room."""
        number = self._numbers.pop()
        self._session.share(holding.number, number, length)
        self._used += cells
        return SequenceCells(number, cells, None)

    def give_back(self, holding: SequenceCells) -> None:
        """Empty a sequence; its prefix stays until its place is needed."""
        self._session.drop(holding.number)
        self._numbers.append(holding.number)
        self._used -= holding.cells
        if holding.resident is not None:
            holding.resident.holders -= 1

    def check(self) -> None:
        """What is counted is what is held. Raises AssertionError."""
        own = sum(holding.cells for holding in self._held.values())
        assert self._used == own + sum(r.length for r in self._residents.values()), "cells are counted wrongly"
        assert self._used <= self._session.cells, "more cells are given away than there are"
        taken = [h.number for h in self._held.values()] + [r.number for r in self._residents.values()]
        assert sorted([*taken, *self._numbers]) == list(range(SEQUENCES)), "a sequence is lost or held twice"
        for resident in self._residents.values():
            held = sum(h.resident is resident for h in self._held.values())
            assert resident.holders == held, "holders are counted wrongly"

    def _make_room(self, cells: int, numbers: int, kept: Collection[str] = ()) -> bool:
        idle = [digest for digest, r in self._residents.items() if not r.holders and digest not in kept]
        most = sum(self._residents[digest].length for digest in idle)
        if self._used + cells - most > self._session.cells or numbers > len(self._numbers) + len(idle):
            return False
        for digest in idle:
            if self._used + cells <= self._session.cells and numbers <= len(self._numbers):
                break
            self._evict(digest)
        return True

    def _evict(self, digest: str) -> None:
        resident = self._residents.pop(digest)
        self._session.drop(resident.number)
        self._numbers.append(resident.number)
        self._used -= resident.length

    def _resident(self, prefix: KVPrefix) -> ResidentPrefix:
        resident = self._residents.get(prefix.digest)
        if resident is None:
            state = self._state(prefix)
            resident = ResidentPrefix(self._numbers.pop(), prefix.length)
            self._session.restore(resident.number, state.write(resident.number))
            self._residents[prefix.digest] = resident
            self._used += prefix.length
            self.injected += 1
        self._residents.move_to_end(prefix.digest)
        return resident

    def _state(self, prefix: KVPrefix) -> SequenceState:
        dtype = self._session.dtype
        keys = tuple(self._order.cached(_array(key, dtype)) for key in prefix.keys)
        values = tuple(np.moveaxis(_array(value, dtype), 0, 1).reshape(prefix.length, -1) for value in prefix.values)
        return SequenceState(np.arange(prefix.length, dtype=np.int32), keys, values)


def check_range(prefix: KVPrefix, dtype: np.dtype) -> None:
    """Raise RequestError for a prefix with numbers that a cache does not hold."""
    if not all(np.isfinite(_array(tensor, dtype)).all() for tensor in (*prefix.keys, *prefix.values)):
        raise RequestError(
            f"the prefix of this request holds numbers beyond {float(np.finfo(dtype).max):,.6g}, which llama.cpp's "
            f"{dtype} cache cannot; serve it with --engine embedded."
        )


def _array(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """A bank's tensor as a cache holds it, also one that PyTorch read."""
    array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().float().cpu().numpy()
    with np.errstate(over="ignore"):
        return array.astype(dtype)
