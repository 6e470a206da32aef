"""Durable writes: atomic and fsynced, so that after a power cut a file is either the old one or the new one, whole."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
"""Begins the names of unfinished files and folders, which readers ignore."""


def temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def durable_write(path: Path, data: bytes) -> None:
    """Replace a file in one step, fsynced. Raises `OSError`, and then the old file is still there."""
    temporary = path.with_name(temporary_name())
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def make_folders(path: Path) -> None:
    """Create a folder and its parents, fsynced."""
    if path.is_dir():
        return
    make_folders(path.parent)
    path.mkdir(exist_ok=True)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Flush the entries of a folder (new files, renames) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
