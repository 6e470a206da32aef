"""`atomic_write`: files of a run folder are complete or absent, even if the process is killed meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A hidden file beside ``file`` to write to; fsynced, it replaces ``file`` if the block ends without an error."""
    partial = file.with_name(f".{file.name}")
    yield partial
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(file)
