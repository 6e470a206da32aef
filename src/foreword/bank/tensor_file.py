"""Safetensors files of named tensors, for soft tokens, heads and adapters; a prefix file has a header besides."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from foreword.bank.durable import durable_write
from foreword.bank.json_document import MEND
from foreword.bank.safetensors_header import read_safetensors_header
from foreword.errors import BankError, CorruptFile, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Dtypes that may be stored: their names in safetensors and in torch."""

TensorLoader = Callable[[str | os.PathLike[str]], dict[str, Any]]
"""Reads the tensors of a file: `load_tensors`, or `foreword.bank.arrays.load_arrays` where there is no PyTorch."""

Shape = tuple[int | str, ...]
"""An expected shape: sizes, and letters for sizes that may be any number from 1, such as ``("S", 576)``."""


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], what: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors from any device, fsynced, whole or not at all.

    Args:
        what: how errors name them, such as ``the soft tokens``.
        metadata: goes into the file's ``__metadata__``.

    Raises:
        UsageError: a dtype that is not floating point, or values that are not finite.
        OSError: the disk is full or not writable.
    """
    for name, tensor in tensors.items():
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES.values():
            raise UsageError(f"{what} must be floating point, {name} is {tensor.dtype}; convert it first.")
        if not is_finite(tensor):
            raise UsageError(f"{name} of {what} holds NaN or infinity; train it again with a smaller --lr.")
    stored = {name: detach(tensor) for name, tensor in tensors.items()}
    durable_write(path, serialize(stored, metadata))


def read_tensors(path: Path, load: TensorLoader) -> dict[str, torch.Tensor]:
    """Read named tensors to the CPU in their stored dtype.

    Args:
        load: reads them once the file's header is in order.

    Raises `CorruptFile` for whatever is wrong with the file, `BankError` if it cannot be opened.
    """
    where = str(path)
    with open_file(path) as stream:
        for name, entry in read_safetensors_header(stream, where).tensors.items():
            if entry.dtype not in DTYPES:
                raise CorruptFile(f"{where}: {name} must be floating point, found {entry.dtype}; {MEND}.")
    tensors = load(path)
    if broken := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise CorruptFile(f"{where}: {broken[0]} must hold finite numbers, found NaN or infinity; {MEND}.")
    return tensors


SUM_CHUNK = 32768
"""Elements that torch sums in the calling thread, without its thread pool."""


def open_file(path: str | os.PathLike[str], what: str = "a safetensors file") -> BinaryIO:
    """Open a file for reading. Raises `BankError` if it cannot be; ``what`` describes it there."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise BankError(
            f"{path}: expected {what}, found none that can be read ({error.strerror}); check the path."
        ) from error


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file, copied, so that they do not change with the file. Raises `CorruptFile`."""
    from safetensors import SafetensorError, safe_open

    try:
        # Memory-mapped: a third of the time of reading the whole file and slicing it.
        with safe_open(path, framework="pt") as tensors:
            return {name: _copy(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CorruptFile(f"{path}: expected valid safetensors, found a fault ({error}); {MEND}.") from error


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy made by this thread alone: waking torch's thread pool takes 8 ms a layer where other processes keep the
    cores busy."""
    import torch

    if not tensor.numel():
        return tensor.clone()
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
    return torch.from_numpy(raw).view(tensor.dtype).reshape(tensor.shape)


def upcast(tensor: Any) -> Any:
    """A torch or numpy tensor in float32, or in its own dtype if that is wider."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.result_type(tensor.dtype, np.float32))
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def serialize(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    import numpy as np

    if any(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        from safetensors.numpy import save
    else:
        from safetensors.torch import save
    return save(dict(tensors), dict(metadata) if metadata else None)


def detach(tensor: Any) -> Any:
    """A contiguous copy on the CPU: safetensors refuses tensors that share storage, as slices of one block do."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        return np.array(tensor, order="C")
    return tensor.detach().cpu().contiguous().clone()


def is_finite(tensor: torch.Tensor | np.ndarray) -> bool:
    """Whether no value is NaN or infinite; float8 is converted, since torch has no `isfinite` for it."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        return bool(np.isfinite(tensor.astype(np.float32)).all())
    import torch

    wide = tensor.float() if tensor.element_size() == 1 else tensor
    # NaN and infinity survive a sum, which is ten times as fast as `isfinite`; a sum of finite values may overflow.
    # Small chunks are summed in this thread, see `_copy`.
    return all(
        bool(part.sum(dtype=torch.float32).isfinite()) or bool(part.isfinite().all())
        for part in wide.reshape(-1).split(SUM_CHUNK)
    )


def shape_error(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Shape]) -> str | None:
    """A clause for an error about missing, unexpected or misshapen tensors; ``None`` if there are none."""
    if missing := expected.keys() - tensors.keys():
        return f"expected the tensor {min(missing)}, found none"
    if extra := tensors.keys() - expected.keys():
        return f"expected {' and '.join(expected)} only, found {min(extra)}"
    for name, shape in expected.items():
        found = list(tensors[name].shape)
        if not _fits(found, shape):
            return f"{name} must be [{', '.join(map(str, shape))}], found {found}"
    return None


def _fits(found: list[int], shape: Shape) -> bool:
    if len(found) != len(shape):
        return False
    pairs = zip(found, shape, strict=True)
    return all(size >= 1 if isinstance(wanted, str) else size == wanted for size, wanted in pairs)
