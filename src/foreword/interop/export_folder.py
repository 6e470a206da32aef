"""`check_empty`: the folder that an export is written to, checked before any model is loaded."""

from __future__ import annotations

from pathlib import Path

from foreword.errors import UsageError


def check_empty(folder: Path) -> None:
    """Raise UsageError unless there is nothing at the path, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; give another path, or clear it first.")
