"""`whole_folder`: a folder is there with all of its files or not at all, even if the process is killed meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``target`` to write to; it takes its place when the block ends without an error.

    What a killed process left of one is deleted by the next. Raises OSError.
    """
    partial, before = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.before")
    for leftover in (partial, before):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if target.exists():
        os.rename(target, before)
    os.rename(partial, target)
    shutil.rmtree(before, ignore_errors=True)
