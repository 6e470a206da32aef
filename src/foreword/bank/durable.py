"""Files and folders that survive a kill or a power cut once a call here has returned."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

TEMPORARY = ".tmp-"
"""Names that start so are unfinished work; readers never look at them."""


def temporary_name() -> str:
    return f"{TEMPORARY}{uuid.uuid4().hex}"


def write_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all. Raises `OSError`; what was there before then stays."""
    temporary = path.with_name(temporary_name())
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, and make their names durable."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
