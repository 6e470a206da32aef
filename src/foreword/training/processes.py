"""Processes of a distributed run, as torchrun and accelerate launch number them."""

from __future__ import annotations

import os

from foreword.errors import UsageError


def is_first() -> bool:
    """Whether this is the process that writes for all."""
    return int(os.environ.get("RANK", "0")) == 0


def check_alone(what: str) -> None:
    """Raise UsageError if there are several processes, which ``what`` would not share its work between."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise UsageError(f"{what} runs in one process, and there are {count}; start it without a launcher.")
