"""A bank on a local disk: versions appear by renaming a folder, ``current`` by replacing a file."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foreword.bank.durable import TEMPORARY_PREFIX, durable_write, fsync_folder, make_folders, temporary_name
from foreword.bank.names import is_name, is_version, version_number
from foreword.bank.version_folder import read_record
from foreword.errors import PublishConflict

_LOCKS = ".locks"
_LEFTOVER_SECONDS = 3600.0


class LocalStore:
    """``<root>/<task>/versions/<version>/`` and ``<root>/<task>/current``; one writer a task by ``flock``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        return str(self._root)

    def tasks(self) -> list[str]:
        return [name for name in _list(self._root) if is_name(name) and (self._root / name / "current").is_file()]

    def versions(self, task: str) -> list[str]:
        return [name for name in _list(self._versions(task)) if is_version(name)]

    def read_current(self, task: str) -> bytes | None:
        return self.read_file(task, "current")

    def write_current(self, task: str, version: str) -> None:
        self.write_file(task, "current", f"{version}\n".encode())

    def read_file(self, task: str, file: str) -> bytes | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self._root / task / file).read_bytes()
        return None

    def write_file(self, task: str, file: str, data: bytes) -> None:
        durable_write(self._root / task / file, data)

    def remove_file(self, task: str, file: str) -> None:
        (self._root / task / file).unlink(missing_ok=True)
        fsync_folder(self._root / task)

    def record(self, task: str, version: str) -> dict[str, Any]:
        return read_record(self.folder(task, version), task, version)

    def folder(self, task: str, version: str, *, fresh: bool = False) -> Path:
        return self._versions(task) / version

    @contextmanager
    def lock(self, task: str) -> Iterator[None]:
        # Outside the task's folder: removing the task must not pull the lock from under a waiting writer.
        import fcntl

        make_folders(self._root / _LOCKS)
        with open(self._root / _LOCKS / task, "ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def staging_folder(self, task: str) -> Iterator[Path]:
        parent = self._root / task
        make_folders(parent)
        _remove_leftovers(parent)
        folder = parent / temporary_name()
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # a first publish that failed leaves nothing; otherwise it is not empty
                parent.rmdir()

    def claim(self, task: str) -> int:
        return max(map(version_number, self.versions(task)), default=0) + 1

    def commit(self, task: str, version: str, folder: Path) -> None:
        target = self._versions(task) / version
        make_folders(target.parent)
        if target.exists():
            raise PublishConflict(f"{target} is there already: another writer published it; publish again.")
        os.rename(folder, target)
        fsync_folder(target.parent)

    def remove_version(self, task: str, version: str) -> None:
        self._remove_folder(self._versions(task) / version, task)

    def remove_task(self, task: str) -> None:
        (self._root / task / "current").unlink(missing_ok=True)
        fsync_folder(self._root / task)
        shutil.rmtree(self._root / task)
        fsync_folder(self._root)

    def check_writable(self) -> None:
        if self._root.is_dir():
            trial = self._root / temporary_name()
            durable_write(trial, b"")
            return trial.unlink()
        above = next(folder for folder in self._root.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))

    def etag(self) -> object:
        found = []
        for name in _list(self._root):
            with suppress(OSError):
                status = os.stat(self._root / name / "current")
                found.append((name, status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(sorted(found))

    def _versions(self, task: str) -> Path:
        return self._root / task / "versions"

    def _remove_folder(self, folder: Path, task: str) -> None:
        # Renamed first, so that a kill in the middle never leaves half a version in the list.
        hidden = self._root / task / temporary_name()
        os.rename(folder, hidden)
        fsync_folder(folder.parent)
        shutil.rmtree(hidden, ignore_errors=True)


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_leftovers(folder: Path) -> None:
    """Delete the staging folders of publishes that were killed over an hour ago."""
    for name in _list(folder):
        path = folder / name
        with suppress(OSError):
            if name.startswith(TEMPORARY_PREFIX) and time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
