"""Processes of a distributed run, as torchrun and accelerate launch number them."""

from __future__ import annotations

import os
from datetime import timedelta
from zlib import crc32

from foreword.errors import UsageError


def is_main_process() -> bool:
    """Whether this is the process that writes for all."""
    return rank() == 0


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_own_work(name: str) -> bool:
    """Whether a piece of work is this process's: by its name alone, so that others may come and go."""
    return crc32(name.encode()) % world_size() == rank()


def barrier() -> None:
    """Wait until all processes are here. Some may have hours more to do than others, so it has to be called before
    anything else brings them together, with a patience of minutes."""
    if world_size() > 1:
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=timedelta(days=30))
        distributed.barrier()


def require_single_process(what: str) -> None:
    """Raise UsageError if there are several processes, which ``what`` would not share its work between."""
    if world_size() > 1:
        raise UsageError(f"{what} runs in one process, and there are {world_size()}; start it without a launcher.")
