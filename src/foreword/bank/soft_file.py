"""``soft.safetensors``: soft tokens that stay inside a task's template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.bank.document import MEND
from foreword.bank.tensor_file import fault_of_shapes, read_tensors, write_tensors
from foreword.errors import CorruptFile, UsageError

if TYPE_CHECKING:
    import torch

_NAME = "soft"
_SLOT = re.compile(r"\{soft:([1-9][0-9]{0,5})\}")


def write_soft(path: Path, soft: torch.Tensor, hidden: int, template: str | None) -> None:
    """Write soft tokens ``[S, hidden]``, fsynced.

    Args:
        hidden: width of the model's embeddings.
        template: of the task; they stand in its last ``{soft:N}``.

    Raises:
        UsageError: not ``[S, hidden]``, not finite floating point, or the template has no place for them.
        OSError: the disk is full or not writable.
    """
    if fault := _fault({_NAME: soft}, hidden, template):
        raise UsageError(f"the soft tokens do not fit their task: {fault}; give those of this model and template.")
    write_tensors(path, {_NAME: soft}, "the soft tokens")


def read_soft(path: Path, hidden: int, template: str | None) -> torch.Tensor:
    """Read soft tokens ``[S, hidden]``. Raises `CorruptFile` for whatever is wrong with them."""
    tensors = read_tensors(path)
    if fault := _fault(tensors, hidden, template):
        raise CorruptFile(f"{path}: {fault}; {MEND}.")
    return tensors[_NAME]


def _fault(tensors: dict[str, torch.Tensor], hidden: int, template: str | None) -> str | None:
    if fault := fault_of_shapes(tensors, {_NAME: ("S", hidden)}):
        return fault
    # The bank does not parse templates: an escaped slot counts too. Whoever fills the template counts exactly.
    slots, count = sum(map(int, _SLOT.findall(template or ""))), tensors[_NAME].shape[0]
    return f"{count} soft tokens need as many {{soft:N}} in the template, found {slots}" if slots < count else None
