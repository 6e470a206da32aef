"""``soft.safetensors``: the learned soft tokens of a task."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.bank.json_document import MEND
from foreword.bank.tensor_file import TensorLoader, load_tensors, read_tensors, shape_error, write_tensors
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
    if error := _soft_error({_NAME: soft}, hidden, template):
        raise UsageError(f"the soft tokens do not fit their task: {error}; give those of this model and template.")
    write_tensors(path, {_NAME: soft}, "the soft tokens")


def read_soft(path: Path, hidden: int, template: str | None, load: TensorLoader = load_tensors) -> torch.Tensor:
    """Read soft tokens ``[S, hidden]``. Raises `CorruptFile` for whatever is wrong with them."""
    tensors = read_tensors(path, load)
    if error := _soft_error(tensors, hidden, template):
        raise CorruptFile(f"{path}: {error}; {MEND}.")
    return tensors[_NAME]


def _soft_error(tensors: dict[str, torch.Tensor], hidden: int, template: str | None) -> str | None:
    if error := shape_error(tensors, {_NAME: ("S", hidden)}):
        return error
    # A prompt without slots is lowered whole, and its soft tokens are kept for other prompts to start from.
    slots, count = sum(map(int, _SLOT.findall(template or ""))), tensors[_NAME].shape[0]
    return f"the template has {slots} soft tokens in its {{soft:N}}, found {count}" if slots > count else None
