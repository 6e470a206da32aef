"""Releases the OpenMP workers of a thread, which PyTorch starts at its first parallel operation and never ends.

libgomp lets workers wait actively for the next operation only while there are no more of them than cores in the whole
process. So a thread that keeps its workers, though it does nothing, slows down the one that runs the model: on two
cores, the first token behind a prompt of 32 tokens comes after 87 ms instead of 67.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# ``omp_pause_hard`` of the OpenMP 5.0 specification: give back everything; it is made anew when it is needed.
_HARD = 2


def release_openmp_threads() -> None:
    """End the workers of the calling thread; its next parallel operation starts new ones. For a thread that has used
    the model and leaves it to another now. Where PyTorch does not run, or not on libgomp, nothing happens."""
    pause = _pause() if "torch" in sys.modules else None
    if pause is not None:
        pause(_HARD)


@cache
def _pause() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the library that PyTorch itself has loaded."""
    import torch

    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        return None
    package = Path(torch.__file__).parent
    for file in (*package.glob("lib/libgomp*"), *package.parent.glob("torch.libs/libgomp*")):
        try:
            return ctypes.CDLL(str(file)).omp_pause_resource_all
        except (OSError, AttributeError):  # another build, or older than OpenMP 5.0
            continue
    return None
