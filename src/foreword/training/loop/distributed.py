"""Rank and world size of a distributed run, from the environment that torchrun and accelerate launch set."""

from __future__ import annotations

import os
from datetime import timedelta
from zlib import crc32

from foreword.errors import UsageError


def is_main_process() -> bool:
    """Whether this process has rank 0, which writes the files of the run."""
    return rank() == 0


def rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_own_work(name: str) -> bool:
    """Whether this process does the work of this name; a hash decides, so that other work does not change it."""
    return crc32(name.encode()) % world_size() == rank()


def barrier() -> None:
    """Wait until all processes are here, for hours if need be.

    It sets the timeout of the process group, so it has to be called before anything else initializes that with its
    default of minutes.
    """
    if world_size() > 1:
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=timedelta(days=30))
        distributed.barrier()


def require_single_process(what: str) -> None:
    """Raise UsageError if there are several processes: ``what`` cannot be distributed."""
    if world_size() > 1:
        raise UsageError(f"{what} runs in one process, and there are {world_size()}; start it without a launcher.")
