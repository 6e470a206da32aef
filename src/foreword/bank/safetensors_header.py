"""The header of a safetensors file, read without torch: enough to judge a file before loading its tensors."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, NoReturn

from pydantic import BaseModel, Field

from foreword.bank.json_document import MEND, Count, describe, is_a, parse
from foreword.errors import CorruptFile

_HEADER_LIMIT = 25_000_000
"""Bytes of a header: enough for the ids of three million tokens."""

_MAX_DIMS = 32

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of a number, by the dtypes of safetensors."""


class _Entry(BaseModel, extra="forbid"):
    dtype: str
    shape: Annotated[list[Count], Field(max_length=_MAX_DIMS)]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


_is_entry = is_a(_Entry)


@dataclass(frozen=True)
class TensorInfo:
    """Dtype, as safetensors writes it, and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SafetensorsHeader:
    """The ``__metadata__`` of a file, and its tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_safetensors_header(stream: BinaryIO, where: str) -> SafetensorsHeader:
    """Read the header of an open file and check it against the file's size. Raises `CorruptFile`."""
    size = os.fstat(stream.fileno()).st_size
    header = _header(stream, size, where)
    entries = parse(header, where)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CorruptFile(f"{where}: __metadata__ must be an object, found {describe(metadata)}; {MEND}.")
    for name, entry in entries.items():
        if not _is_entry(entry):
            raise CorruptFile(
                f"{where}: tensor {name} needs dtype, shape, data_offsets, found {describe(entry)}; {MEND}."
            )
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    _check_size(8 + len(header) + end, size, where)
    _check_layout(entries, where)
    return SafetensorsHeader(metadata, {n: TensorInfo(e["dtype"], tuple(e["shape"])) for n, e in entries.items()})


def _header(stream: BinaryIO, size: int, where: str) -> bytes:
    """The JSON behind the eight bytes that hold its length."""
    if size < 8:
        _truncated(8, size, where)
    length = int.from_bytes(stream.read(8), "little")
    if length > _HEADER_LIMIT or stream.read(1) not in (b"{", b""):
        raise CorruptFile(f"{where}: expected a safetensors file, found another format; give one, or {MEND}.")
    if size < 8 + length:
        _truncated(8 + length, size, where)
    stream.seek(8)
    return stream.read(length)


def _check_layout(entries: dict[str, Any], where: str) -> None:
    """Raise `CorruptFile` unless the tensors lie end to end, each in the bytes that its dtype and shape need."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda named: named[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        bits = _BITS.get(entry["dtype"])
        if bits is None:
            raise CorruptFile(f"{where}: {name} must have a known dtype, found {describe(entry['dtype'])}; {MEND}.")
        needed = -(-math.prod(entry["shape"]) * bits // 8)
        if begin != at or end - begin != needed:
            raise CorruptFile(
                f"{where}: {name} must have the bytes {at} to {at + needed} for {entry['dtype']} of "
                f"{describe(entry['shape'])}, found {begin} to {end}; {MEND}."
            )
        at = end


def _check_size(expected: int, found: int, where: str) -> None:
    if found < expected:
        _truncated(expected, found, where)
    if found > expected:
        raise CorruptFile(f"{where} is too long: expected {expected} bytes, found {found}; {MEND}.")


def _truncated(expected: int, found: int, where: str) -> NoReturn:
    raise CorruptFile(f"{where} is truncated: expected {expected} bytes or more, found {found}; {MEND}.")
