"""``head.safetensors``: the linear layer that labels hidden states. Its labels stand in ``task.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.bank.json_document import MEND
from foreword.bank.tensor_file import Shape, TensorLoader, load_tensors, read_tensors, shape_error, write_tensors
from foreword.core import Head
from foreword.errors import CorruptFile, UsageError

if TYPE_CHECKING:
    import torch


def write_head(path: Path, head: Head, hidden: int) -> None:
    """Write ``weight [labels, hidden]`` and ``bias [labels]``, fsynced.

    Raises:
        UsageError: other shapes, or values that are not finite floating point.
        OSError: the disk is full or not writable.
    """
    tensors = {"weight": head.weight, "bias": head.bias}
    if error := shape_error(tensors, _shapes(head.labels, hidden)):
        raise UsageError(f"the head does not fit its task: {error}; give one of this model and these labels.")
    write_tensors(path, tensors, "the head")


def read_head(path: Path, entry: Mapping[str, Any], hidden: int, *, load: TensorLoader = load_tensors) -> Head:
    """Read the head that a record's field ``head`` describes. Raises `CorruptFile` for whatever is wrong with it."""
    labels = entry["labels"]
    tensors: dict[str, torch.Tensor] = read_tensors(path, load)
    if error := shape_error(tensors, _shapes(labels, hidden)):
        raise CorruptFile(f"{path}: {error}; {MEND}.")
    problem_type = entry.get("problem_type", "single_label_classification")
    return Head(tuple(labels), tensors["weight"], tensors["bias"], entry["per_token"], problem_type)


def _shapes(labels: Sequence[str], hidden: int) -> dict[str, Shape]:
    return {"weight": (len(labels), hidden), "bias": (len(labels),)}
