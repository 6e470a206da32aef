"""Weights that PyTorch pickled: read without running anything of them, and no larger than their file is."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_pickled_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises ValueError for a file that unpacks to more than it has bytes or that holds anything else, and whatever
    `torch.load` raises with ``weights_only``.
    """
    check_packed_size(file)
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError("it must hold tensors by name and nothing else")
    for name, tensor in found.items():
        # A view may say that one number stands in a billion places.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{str(name)[:60]} repeats its numbers")
    return {str(name): tensor for name, tensor in found.items()}


def check_packed_size(file: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than it has bytes; PyTorch never compresses its own."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > file.stat().st_size:
        raise ValueError(f"it unpacks to {unpacked} bytes, and has {file.stat().st_size}")
