"""The folder that an export is written to: `check_empty`, before any model is loaded, and `exported_folder`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foreword.errors import UsageError

_PARTIAL = ".export"


def check_empty(folder: Path) -> None:
    """Raise UsageError unless there is nothing at the path, or a folder that is empty but for an interrupted export."""
    interrupted = (folder / _PARTIAL).is_dir()
    if folder.exists() and not interrupted and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; give another path, or clear it first.")


@contextmanager
def exported_folder(folder: Path, last: str) -> Iterator[Path]:
    """A folder inside ``folder`` to write to; its files are moved up when the block ends without an error.

    Args:
        last: the file without which no program reads the folder; it is moved last.
    """
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (folder / last).unlink(missing_ok=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # a folder of the user's own stays
            folder.rmdir()
        raise
    for file in sorted(partial.iterdir(), key=lambda file: file.name == last):
        file.replace(folder / file.name)
    partial.rmdir()
