"""`SequenceState`: keys and values of one sequence, read from and written in llama.cpp's format.

The bytes are: magic u32, sequence i32, streams u32 (1), cells u32; for each cell position i32, count u32 (1), sequence
i32; transposed u32, layers u32; then for each layer of keys type i32, bytes of a cell u64, and the cells one after
another; and the same for values, unless they are transposed: then type i32, bytes of a number u32, numbers of a cell
u32, and the first number of all cells, the second of all, and so on. Little-endian, without gaps.
Values are transposed in a float32 cache, which flash attention does not read.
(llama.cpp, ``llama_context::state_seq_get_data`` and ``llama_kv_cache::state_write``.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from foreword.errors import EngineError

MAGIC = 0xAF143CD8
GGML_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
"""``ggml_type`` of the dtypes that a cache may have."""

_HEAD = struct.Struct("<IiII")
_MIDDLE = struct.Struct("<II")
_ROWS = struct.Struct("<iQ")
_COLUMNS = struct.Struct("<iII")
_CELL = np.dtype([("position", "<i4"), ("count", "<u4"), ("sequence", "<i4")])


@dataclass(frozen=True, eq=False)
class SequenceState:
    """Keys and values of a sequence, as they are in the cache.

    Attributes:
        positions: ``[P]`` of its cells, in the order of the rows.
        keys, values: ``[P, heads * dim]`` for every layer, all float16 or all float32.
    """

    positions: np.ndarray
    keys: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    @classmethod
    def from_bytes(
        cls, data: bytes, seq_id: int, key_widths: Sequence[int], value_widths: Sequence[int], dtype: np.dtype
    ) -> SequenceState:
        """Read a state.

        Args:
            seq_id: of the sequence.
            key_widths, value_widths: numbers that a cell holds in every layer.
            dtype: of the cache.

        Raises EngineError for any field that is not as this file says, and for bytes that are left over.
        """
        reader, transposed = _StateReader(data, dtype), _is_transposed(dtype)
        reader.expect("magic number, sequence and streams", reader.unpack(_HEAD)[:3], (MAGIC, seq_id, 1))
        cells = _HEAD.unpack_from(data)[3]
        table = np.frombuffer(reader.bytes(cells * _CELL.itemsize), _CELL)
        reader.expect("sequences of a cell", set(table["count"].tolist()), {1})
        reader.expect("sequence of a cell", set(table["sequence"].tolist()), {seq_id})
        reader.expect("transposition and layers", reader.unpack(_MIDDLE), (transposed, len(key_widths)))
        keys = tuple(reader.rows(cells, width) for width in key_widths)
        values = tuple((reader.columns if transposed else reader.rows)(cells, width) for width in value_widths)
        reader.expect("bytes that are left", len(data) - reader.offset, 0)
        return cls(table["position"], keys, values)

    def to_bytes(self, seq_id: int) -> bytes:
        """Inverse of `from_bytes`."""
        table = np.empty(len(self.positions), _CELL)
        table["position"], table["count"], table["sequence"] = self.positions, 1, seq_id
        transposed = _is_transposed(self.keys[0].dtype)
        head = (_HEAD.pack(MAGIC, seq_id, 1, len(table)), table.tobytes(), _MIDDLE.pack(transposed, len(self.keys)))
        keys = map(_rows, self.keys)
        values = map(_columns if transposed else _rows, self.values)
        return b"".join(chain(head, *keys, *values))


def _is_transposed(dtype: np.dtype) -> bool:
    return dtype == np.float32


def _rows(rows: np.ndarray) -> tuple[bytes, memoryview]:
    head = _ROWS.pack(GGML_TYPES[rows.dtype], rows.shape[1] * rows.itemsize)
    return head, np.ascontiguousarray(rows).data.cast("B")


def _columns(rows: np.ndarray) -> tuple[bytes, memoryview]:
    head = _COLUMNS.pack(GGML_TYPES[rows.dtype], rows.itemsize, rows.shape[1])
    return head, np.ascontiguousarray(rows.T).data.cast("B")


class _StateReader:
    def __init__(self, data: bytes, dtype: np.dtype) -> None:
        self.offset, self._data, self._dtype = 0, data, dtype

    def bytes(self, size: int) -> memoryview:
        self.offset += size
        if self.offset > len(self._data):
            raise _unexpected("length", len(self._data), f"{self.offset} or more")
        return memoryview(self._data)[self.offset - size : self.offset]

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.bytes(form.size))

    def expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise _unexpected(what, found, expected)

    def rows(self, cells: int, width: int) -> np.ndarray:
        size = width * self._dtype.itemsize
        self.expect("type and bytes of a cell", self.unpack(_ROWS), (GGML_TYPES[self._dtype], size))
        return np.frombuffer(self.bytes(cells * size), self._dtype).reshape(cells, width)

    def columns(self, cells: int, width: int) -> np.ndarray:
        size = self._dtype.itemsize
        self.expect("type and size of a cell", self.unpack(_COLUMNS), (GGML_TYPES[self._dtype], size, width))
        return np.frombuffer(self.bytes(cells * size * width), self._dtype).reshape(width, cells).T


def _unexpected(what: str, found: object, expected: object) -> EngineError:
    return EngineError(
        f"llama.cpp's state of a sequence is not as it is known here: {what} is {found}, expected {expected}; install "
        "a llama-cpp-python that Foreword names in its extra [llamacpp]."
    )
