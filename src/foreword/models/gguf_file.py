"""`GgufFile`: metadata and tensor shapes of a GGUF file, in ggml's format (docs/gguf.md, version 3).

The package ``gguf`` reads the same in 1.8 seconds, this in 0.03 (the built-in model, one core). Every file is read here
before a library builds anything of it: whatever the file counts must be in the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from foreword.errors import UnknownModel, UnsupportedModel

T = TypeVar("T")

_STRUCT_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
FLOAT32, FLOAT16 = 0, 1  # ggml's types
_MAX_DIMS = 4
_FEW_BLOCKS = 512
"""As many may be counted whatever tensors there are: lists of them are short."""
_MAX_FIELDS = 4096
_MAX_ELEMENTS = 1 << 21
"""Of all arrays together: a vocabulary has 260,000 tokens and 510,000 merges; Transformers takes 300 bytes for each."""
_MAX_NUMBER = 2**31 - 1
_MAX_ALIGNMENT = 1 << 20

# Numbers in a block and its bytes, by ggml's types: those of 32 and of 256 numbers are quantized.
_BLOCKS: dict[int, tuple[int, int]] = {
    **{0: (1, 4), 1: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2)},
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 20: (32, 18), 39: (32, 17)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66)},
    **{17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56)},
    **{34: (256, 54), 35: (256, 66), 40: (64, 36), 41: (128, 18)},
}


@dataclass(frozen=True)
class GgufFile:
    """A file without its weights.

    Attributes:
        path: the file.
        fields: the metadata; texts, numbers, and arrays of them as lists and tuples.
        shapes: of every tensor in ggml's order, the fastest dimension first.
        types: of every tensor, as ggml numbers them.
    """

    path: Path
    fields: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Raises UnknownModel if there is no such file, UnsupportedModel if it is no GGUF file, or one whose header
        describes more than the file holds."""
        try:
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return cls._parse(path, _GgufReader(data))
        except OSError as error:
            raise UnknownModel(f"{path} cannot be read ({error.strerror}); give the path of a .gguf file.") from error
        except (ValueError, struct.error, KeyError, MemoryError) as error:  # an empty or a cut file among them
            raise UnsupportedModel(
                f"{path} cannot be read as a GGUF model ({str(error) or repr(error)}); fetch it again."
            ) from error

    @classmethod
    def _parse(cls, path: Path, reader: _GgufReader) -> GgufFile:
        if reader.bytes(4) != b"GGUF" or reader.number("I") not in _VERSIONS:
            raise ValueError("expected GGUF of version 2 or 3")
        tensors, fields = reader.number("Q"), reader.number("Q")
        if fields > _MAX_FIELDS or tensors > reader.left // _TENSOR_BYTES:
            raise ValueError(f"it counts {fields} fields and {tensors} tensors, more than it can hold")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            name = reader.text()
            if name in metadata:
                raise ValueError(f"the field {_short(name)} stands twice")
            metadata[name] = reader.value(reader.number("I"))
        found: dict[str, _Tensor] = {}
        for _ in range(tensors):
            name = reader.text()
            if name in found:
                raise ValueError(f"the tensor {_short(name)} stands twice")
            found[name] = reader.tensor(name)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"general.alignment must be a power of two up to {_MAX_ALIGNMENT}")
        _check_places(found, alignment, reader.left_from(alignment))
        shapes = {name: each.shape for name, each in found.items()}
        file = cls(path, metadata, shapes, {name: each.type for name, each in found.items()})
        file._check_fields()
        return file

    def _check_fields(self) -> None:
        """Raise ValueError for numbers of the architecture that no model of these tensors has."""
        own = f"{self.architecture}."
        for name, value in self.fields.items():
            if name.startswith((own, "tokenizer.ggml.")) or name == "general.alignment":
                for number in value if isinstance(value, tuple | list) else (value,):
                    if isinstance(number, int | float) and not -_MAX_NUMBER <= number <= _MAX_NUMBER:
                        raise ValueError(f"{_short(name)} must be a number of at most {_MAX_NUMBER}, found {number}")
        widest = max((size for shape in self.shapes.values() for size in shape), default=0)
        bounds = {
            "block_count": max(_FEW_BLOCKS, len(self.shapes)),
            "embedding_length": widest,
            "feed_forward_length": widest,
        }
        bounds |= {"attention.head_count": widest, "attention.head_count_kv": widest, "expert_count": widest}
        bounds |= {"vocab_size": widest, "attention.key_length": widest, "attention.value_length": widest}
        for name, most in bounds.items():
            value = self.get(name, 0)
            numbers = value if isinstance(value, tuple | list) else (value,)
            if len(numbers) > max(_FEW_BLOCKS, len(self.shapes)) or not all(
                isinstance(number, int) and 0 <= number <= most for number in numbers
            ):
                raise ValueError(f"{own}{name} must be at most {most} for the tensors in it, found {_short(value)}")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise ValueError unless embedding, heads and vocabulary are those of the tensors."""
        width, heads = self.get("embedding_length", None), self.get("attention.head_count", None)
        if heads == 0 or (isinstance(heads, int) and isinstance(width, int) and width < heads):
            raise ValueError(f"{self.architecture}.attention.head_count {heads} does not divide {width}")
        table = self.shapes.get("token_embd.weight")
        if table is None:
            raise ValueError("it has no tensor token_embd.weight")
        if len(table) != 2 or (width is not None and table[0] != width):
            raise ValueError(
                f"token_embd.weight must be {width} wide as its embedding_length says, found {list(table)}"
            )
        tokens = self.fields.get("tokenizer.ggml.tokens", ())
        if not isinstance(tokens, list | tuple) or len(tokens) > table[1]:
            raise ValueError(f"it has {len(tokens)} tokens, and embeddings of {table[1]}")
        for name, most in (("scores", len(tokens)), ("token_type", len(tokens)), ("merges", 8 * len(tokens) + 8)):
            listed = self.fields.get(f"tokenizer.ggml.{name}", ())
            if not isinstance(listed, list | tuple) or len(listed) > most:
                raise ValueError(f"tokenizer.ggml.{name} must be a list of at most {most}, found {_short(listed)}")
        for name in ("bos", "eos", "unknown", "padding"):
            token = self.fields.get(f"tokenizer.ggml.{name}_token_id", 0)
            if not isinstance(token, int) or not 0 <= token < max(len(tokens), table[1]):
                raise ValueError(f"tokenizer.ggml.{name}_token_id must be a token of it, found {_short(token)}")

    @property
    def dtype(self) -> np.dtype:
        """Of the cache that goes with the weights: float32 if all of them are, else float16."""
        return np.dtype(np.float32 if set(self.types.values()) == {FLOAT32} else np.float16)

    @property
    def numbers(self) -> int:
        """In all tensors together."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    def get(self, name: str, default: T) -> T | Any:
        """A field of the file's own architecture, such as ``block_count``."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    def require(self, name: str) -> Any:
        """A field of the file's own architecture. Raises UnsupportedModel if it is missing."""
        found = self.get(name, None)
        if found is None:
            raise UnsupportedModel(f"{self.path} has no {self.architecture}.{name}; convert the model again.")
        return found


@dataclass(frozen=True)
class _Tensor:
    """Shape in ggml's order, type, and place behind the header with its bytes."""

    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int


_TENSOR_BYTES = 8 + 4 + 4 + 8
"""Of the smallest entry of a tensor: a text, a count of dimensions, a type and an offset."""


def _check_places(tensors: Mapping[str, _Tensor], alignment: int, left: int) -> None:
    """Raise ValueError unless all tensors are in the file, each in bytes of its own."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda named: named[1].offset):
        if tensor.offset % alignment or tensor.offset < end or tensor.offset + tensor.nbytes > left:
            raise ValueError(
                f"{_short(name)} must be {tensor.nbytes} bytes of its own between {end} and {left}, found them at "
                f"{tensor.offset}"
            )
        end = tensor.offset + tensor.nbytes


def _short(value: object) -> str:
    text = f"{len(value)} of them" if isinstance(value, list | tuple) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _GgufReader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._offset, self._elements = data, 0, 0

    @property
    def left(self) -> int:
        """Bytes that are not read."""
        return len(self._data) - self._offset

    def left_from(self, alignment: int) -> int:
        """Bytes from the next multiple of ``alignment``, where the tensors begin."""
        return len(self._data) - -(-self._offset // alignment) * alignment

    def tensor(self, name: str) -> _Tensor:
        dims = self.number("I")
        if not 1 <= dims <= _MAX_DIMS:
            raise ValueError(f"{_short(name)} must have 1 to {_MAX_DIMS} dimensions, found {dims}")
        shape = tuple(self.number("Q") for _ in range(dims))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in _BLOCKS:
            raise ValueError(f"{_short(name)} is of ggml's type {kind}, which is not known here")
        numbers, size = _BLOCKS[kind]
        if 0 in shape or shape[0] % numbers:
            raise ValueError(f"{_short(name)} must have rows of whole blocks of {numbers}, found {list(shape)}")
        return _Tensor(shape, kind, offset, math.prod(shape) // numbers * size)

    def bytes(self, size: int) -> bytes:
        self._offset += size
        if self._offset > len(self._data):
            raise ValueError("it is cut off")
        return self._data[self._offset - size : self._offset]

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_STRUCT_FORMATS[kind])
        inner, count = self.number("I"), self.number("Q")
        self._elements += count
        if self._elements > _MAX_ELEMENTS or count > self.left:
            raise ValueError(f"it lists {self._elements} values, more than {min(_MAX_ELEMENTS, self.left)}")
        if inner in _STRUCT_FORMATS:
            form = f"<{count}{_STRUCT_FORMATS[inner]}"
            return struct.unpack(form, self.bytes(struct.calcsize(form)))
        if inner != _STRING:
            raise ValueError(f"it has a list of values of type {inner}; lists are of numbers or of texts")
        return self.texts(count)

    def texts(self, count: int) -> list[str]:
        """``count`` texts in one loop: a vocabulary has fifty thousand."""
        data, offset, size, texts = self._data, self._offset, struct.Struct("<Q").unpack_from, list[str]()
        for _ in range(count):
            end = offset + 8 + size(data, offset)[0]
            if end > len(data):
                raise ValueError("it is cut off")
            texts.append(data[offset + 8 : end].decode("utf-8", "replace"))
            offset = end
        self._offset = offset
        return texts
