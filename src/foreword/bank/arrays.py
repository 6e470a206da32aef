"""Tensors as numpy arrays, for engines that run without PyTorch."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize

from foreword.bank.json_document import MEND
from foreword.errors import CorruptFile

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, in their stored dtypes. Raises `CorruptFile`."""
    try:
        with open(path, "rb") as stream:
            found = deserialize(stream.read())
        return {name: np.frombuffer(e["data"], _DTYPES[e["dtype"]]).reshape(e["shape"]) for name, e in found}
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path}: expected valid safetensors, found a fault ({error}); {MEND}.") from error
