"""``soft.safetensors``: the soft tokens that a task has learned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.bank.json_document import MEND
from foreword.bank.tensor_file import Load, fault_of_shapes, load_tensors, read_tensors, write_tensors
from foreword.errors import CorruptFile, UsageError

if TYPE_CHECKING:
    import torch

_NAME = "soft"
# An odd number of braces: two of them are a literal one.
_SLOT = re.compile(r"(?<!\{)(?:\{\{)*\{soft:([1-9][0-9]{0,5})\}")


def write_soft(path: Path, soft: torch.Tensor, hidden: int, template: str | None) -> None:
    """Write soft tokens ``[S, hidden]``, fsynced.

    Args:
        hidden: width of the model's embeddings.
        template: of the task; the last of them stand in its ``{soft:N}``.

    Raises:
        UsageError: not ``[S, hidden]``, not finite floating point, or fewer than the template has places for.
        OSError: the disk is full or not writable.
    """
    if fault := _fault({_NAME: soft}, hidden, template):
        raise UsageError(f"the soft tokens do not fit their task: {fault}; give those of this model and template.")
    write_tensors(path, {_NAME: soft}, "the soft tokens")


def read_soft(path: Path, hidden: int, template: str | None, load: Load = load_tensors) -> torch.Tensor:
    """Read soft tokens ``[S, hidden]``. Raises `CorruptFile` for whatever is wrong with them."""
    tensors = read_tensors(path, load)
    if fault := _fault(tensors, hidden, template):
        raise CorruptFile(f"{path}: {fault}; {MEND}.")
    return tensors[_NAME]


def _fault(tensors: dict[str, torch.Tensor], hidden: int, template: str | None) -> str | None:
    if fault := fault_of_shapes(tensors, {_NAME: ("S", hidden)}):
        return fault
    # A prompt without slots is lowered whole, and its soft tokens are kept for other prompts to start from.
    slots, count = sum(map(int, _SLOT.findall(template or ""))), tensors[_NAME].shape[0]
    return f"the template has {slots} soft tokens in its {{soft:N}}, found {count}" if slots > count else None
