"""`SizeBound`: a model is built no larger than its files are.

Transformers builds a model by its configuration alone, on the device ``meta``, and gives memory to whatever the files
lack. A small file may so describe a model of any size; here the description is followed only as far as the files go.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from foreword.errors import UnsupportedModel

SLACK = 1 << 26
"""Numbers that a model may have beyond those of its files: heads that are tied, tables that it computes."""

_MAKERS = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.tensor}
)


class SizeBound(TorchFunctionMode):
    """While it is entered, this thread makes tensors on the device ``meta`` only up to a bound.

    Args:
        numbers: in the model's files; twice as many may be made, for weights are made before they are tied.
        name: of the model, for the error.

    Raises UnsupportedModel where a tensor goes beyond.
    """

    def __init__(self, numbers: int, name: str) -> None:
        super().__init__()
        self._numbers, self._left, self._name = numbers, 2 * numbers + SLACK, name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        if func in _MAKERS and isinstance(made, torch.Tensor) and made.is_meta:
            self._left -= math.prod(made.shape)
            if self._left < 0:
                raise UnsupportedModel(
                    f"{self._name} describes a model of more numbers than its files can fill, which hold "
                    f"{self._numbers:,}; fetch it again."
                )
        return made
