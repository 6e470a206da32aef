"""The header of a safetensors file, read without torch: enough to judge a file before loading its tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, NoReturn

from pydantic import BaseModel, Field

from foreword.bank.json_document import MEND, Count, describe, is_a, parse
from foreword.errors import CorruptFile

_HEADER_LIMIT = 100_000_000
"""Bytes that safetensors itself allows for a header."""


class _Entry(BaseModel, extra="forbid"):
    dtype: str
    shape: list[Count]
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


def _check_size(expected: int, found: int, where: str) -> None:
    if found < expected:
        _truncated(expected, found, where)
    if found > expected:
        raise CorruptFile(f"{where} is too long: expected {expected} bytes, found {found}; {MEND}.")


def _truncated(expected: int, found: int, where: str) -> NoReturn:
    raise CorruptFile(f"{where} is truncated: expected {expected} bytes or more, found {found}; {MEND}.")
