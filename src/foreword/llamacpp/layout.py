"""The state of one sequence as llama.cpp writes it, read and made field by field.

A state is: magic u32, sequence i32, streams u32 (1), cells u32; for each cell position i32, count u32 (1), sequence
i32; transposed u32 (0), layers u32; then for each layer of keys type i32 (1, float16), bytes of a cell u64, and the
cells one after another; and the same for values. Little-endian, without gaps.
(llama.cpp, ``llama_context::state_seq_get_data`` and ``llama_kv_cache::state_write``.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.errors import EngineError

MAGIC = 0xAF143CD8
F16 = 1
"""ggml's number of the type."""

_HEAD = struct.Struct("<IiII")
_MIDDLE = struct.Struct("<II")
_ROWS = struct.Struct("<iQ")
_CELL = np.dtype([("position", "<i4"), ("count", "<u4"), ("sequence", "<i4")])


@dataclass(frozen=True, eq=False)
class State:
    """What a sequence keeps.

    Attributes:
        positions: ``[P]`` of its cells, in the order of the rows.
        keys, values: a ``[P, heads * dim]`` float16 for every layer.
    """

    positions: np.ndarray
    keys: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    @classmethod
    def read(cls, data: bytes, sequence: int, key_widths: Sequence[int], value_widths: Sequence[int]) -> State:
        """Take a state apart.

        Args:
            sequence: whose it must be.
            key_widths, value_widths: numbers that a cell holds in every layer.

        Raises EngineError for any field that is not as this file says, and for bytes that are left over.
        """
        reader = _Reader(data)
        reader.expect("magic number, sequence and streams", reader.take(_HEAD)[:3], (MAGIC, sequence, 1))
        cells = _HEAD.unpack_from(data)[3]
        table = np.frombuffer(reader.bytes(cells * _CELL.itemsize), _CELL)
        reader.expect("sequences of a cell", set(table["count"].tolist()), {1})
        reader.expect("sequence of a cell", set(table["sequence"].tolist()), {sequence})
        reader.expect("transposition and layers", reader.take(_MIDDLE), (0, len(key_widths)))
        keys = tuple(reader.rows(cells, width) for width in key_widths)
        values = tuple(reader.rows(cells, width) for width in value_widths)
        reader.expect("bytes that are left", len(data) - reader.at, 0)
        return cls(table["position"], keys, values)

    def write(self, sequence: int) -> bytes:
        """Inverse of `read`."""
        table = np.empty(len(self.positions), _CELL)
        table["position"], table["count"], table["sequence"] = self.positions, 1, sequence
        parts = [_HEAD.pack(MAGIC, sequence, 1, len(table)), table.tobytes(), _MIDDLE.pack(0, len(self.keys))]
        for rows in (*self.keys, *self.values):
            parts += [_ROWS.pack(F16, rows.shape[1] * rows.itemsize), np.ascontiguousarray(rows).data.cast("B")]
        return b"".join(parts)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.at, self._data = 0, data

    def bytes(self, size: int) -> memoryview:
        self.at += size
        if self.at > len(self._data):
            raise _unknown("length", len(self._data), f"{self.at} or more")
        return memoryview(self._data)[self.at - size : self.at]

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.bytes(form.size))

    def expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise _unknown(what, found, expected)

    def rows(self, cells: int, width: int) -> np.ndarray:
        self.expect("type and bytes of a cell", self.take(_ROWS), (F16, 2 * width))
        return np.frombuffer(self.bytes(cells * 2 * width), np.float16).reshape(cells, width)


def _unknown(what: str, found: object, expected: object) -> EngineError:
    return EngineError(
        f"llama.cpp's state of a sequence is not as it is known here: {what} is {found}, expected {expected}; install "
        "a llama-cpp-python that Foreword names in its extra [llamacpp]."
    )
