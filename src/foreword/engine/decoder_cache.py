"""`DecoderCache`: room for the keys and values of an encoder-decoder's sequences, and the batches that hold them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from foreword.core import LayerShape
from foreword.engine.decoder_rows import DecoderRows
from foreword.engine.sequence import Sequence
from foreword.models.encoder_decoder import prefix_length


class DecoderCache:
    """A bound on positions, of texts and of answers; a `foreword.engine.scheduler.KVCacheManager`.

    Nothing is shared between sequences: an encoder reads a text as a whole, so its beginning is never computed apart.

    Args:
        num_positions: of texts, prefixes and answers together.

    Attributes:
        batches: rows of the allocated sequences that were begun; every sequence is in one batch at most.
    """

    def __init__(self, num_positions: int) -> None:
        self.num_positions = num_positions
        self.batches: list[DecoderRows] = []
        self._held: dict[Sequence, int] = {}
        self._freed: set[Sequence] = set()

    @staticmethod
    def bytes_per_position(shapes: tuple[LayerShape, ...], dtype: torch.dtype) -> int:
        """Of a position of a text, in the cross-attention, or of an answer, in the self-attention of as many layers."""
        return sum(s.kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize

    @property
    def num_free_positions(self) -> int:
        return self.num_positions - sum(self._held.values())

    def allocate(self, sequence: Sequence) -> bool:
        """See `KVCacheManager.allocate`."""
        needed = _num_positions(sequence)
        if needed > self.num_free_positions:
            return False
        self._held[sequence] = needed
        return True

    def extend(self, sequence: Sequence) -> bool:
        """See `KVCacheManager.extend`."""
        needed = _num_positions(sequence)
        if needed - self._held[sequence] > self.num_free_positions:
            return False
        self._held[sequence] = needed
        return True

    def cache_tokens(self, sequence: Sequence) -> None:
        """Nothing: no other sequence can use them."""

    def free(self, sequence: Sequence) -> None:
        """See `KVCacheManager.free`. A batch goes with its last sequence."""
        del self._held[sequence]
        sequence.num_computed_tokens = 0
        self._freed.add(sequence)
        self.batches = [rows for rows in self.batches if not self._freed.issuperset(rows.sequences)]

    def regroup(self, key: Callable[[Sequence, int, int], Hashable]) -> None:
        """Lay rows with equal keys out as one batch, without those of freed sequences.

        Args:
            key: of a sequence, the positions of its self-attention cache and those of its text.
        """
        parts: dict[Hashable, list[DecoderRows]] = {}
        for rows in self.batches:
            chosen: dict[Hashable, list[int]] = {}
            for row, described in enumerate(zip(rows.sequences, rows.lengths, rows.text_lengths, strict=True)):
                if described[0] not in self._freed:
                    chosen.setdefault(key(*described), []).append(row)
            for each, indices in chosen.items():
                whole = len(indices) == len(rows.sequences)
                parts.setdefault(each, []).append(rows if whole else rows.select(indices))
        self._freed.clear()
        self.batches = [DecoderRows.concat(part) for part in parts.values()]

    def statistics(self) -> dict[str, float]:
        """``positions`` and ``free_positions``."""
        return {"positions": self.num_positions, "free_positions": self.num_free_positions}

    def close(self) -> None:
        """Release the tensors."""
        self.batches = []

    def check(self) -> None:
        """Check the invariants: no sequence is in two batches, and none is there without room. Raises
        AssertionError."""
        found = [sequence for rows in self.batches for sequence in rows.sequences if sequence not in self._freed]
        assert len(set(found)) == len(found), "a sequence is in two batches"
        assert set(found) <= self._held.keys(), "a sequence is kept without room"
        assert self.num_free_positions >= 0, "more positions are held than there are"


def _num_positions(sequence: Sequence) -> int:
    """Positions of a sequence: its prefix in front of text and answer, its text, the start token and its answer."""
    return 2 * prefix_length(sequence.prefix) + sequence.num_tokens + 1
