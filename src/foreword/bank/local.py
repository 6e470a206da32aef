"""A bank on a local disk: versions appear by renaming a folder, ``current`` by replacing a file, and what is removed
is renamed out of sight before it is deleted, so that a kill at any moment leaves all of it or nothing."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foreword.bank.durable import TEMPORARY_PREFIX, durable_write, fsync_folder, make_folders, temporary_name
from foreword.bank.names import is_name, is_version, matching_versions, version_number
from foreword.bank.split import SPLIT
from foreword.bank.store import CURRENT
from foreword.bank.time_to_live import USED
from foreword.bank.version_files import RECORD
from foreword.bank.version_folder import read_record
from foreword.errors import PublishConflict

_LOCKS = ".locks"
_REMOVED = ".removed"
_VERSIONS = "versions"


class LocalStore:
    """``<root>/<task>/versions/<version>/`` and ``<root>/<task>/current``; one writer a task by ``flock``.

    What is being deleted is ``<root>/.removed/<task>@<random>`` or ``<root>/<task>/.tmp-<random>-<version>``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        return str(self._root)

    def tasks(self) -> list[str]:
        return [name for name in _list(self._root) if is_name(name) and (self._root / name / CURRENT).is_file()]

    def versions(self, task: str) -> list[str]:
        return [name for name in self._version_folders(task) if (self._versions(task) / name / RECORD).is_file()]

    def known(self) -> list[str]:
        removed = {entry.partition("@")[0] for entry in _list(self._root / _REMOVED)}
        return [name for name in {*_list(self._root), *removed} if is_name(name)]

    def read_current(self, task: str) -> bytes | None:
        return self.read_file(task, CURRENT)

    def write_current(self, task: str, version: str) -> None:
        self.write_file(task, CURRENT, f"{version}\n".encode())

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
        self.sweep(task)
        make_folders(parent)
        folder = parent / temporary_name()
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # a first publish that failed leaves nothing; otherwise it is not empty
                parent.rmdir()

    def claim(self, task: str) -> int:
        return max(map(version_number, self._version_folders(task)), default=0) + 1

    def commit(self, task: str, version: str, folder: Path) -> None:
        target = self._versions(task) / version
        make_folders(target.parent)
        if target.exists():
            raise PublishConflict(f"{target} is there already: another writer published it; publish again.")
        os.rename(folder, target)
        fsync_folder(target.parent)

    def remove_version(self, task: str, version: str) -> None:
        self._remove(self._versions(task) / version, self._root / task / f"{temporary_name()}-{version}")

    def remove_task(self, task: str) -> None:
        make_folders(self._root / _REMOVED)
        self._remove(self._root / task, self._removed(task))

    def was_removed(self, task: str, version: str | None) -> bool:
        if version is None:
            return bool(self._trash(task))
        hidden = [name.removeprefix(TEMPORARY_PREFIX).partition("-")[2] for name in _list(self._root / task)]
        return bool(matching_versions(version, list(filter(is_version, hidden))))

    def leftovers(self, task: str) -> list[str]:
        return [str(path.relative_to(self._root)) for path in self._leftovers(task)]

    def sweep(self, task: str) -> None:
        for path in self._leftovers(task):
            hidden = path.name.startswith(TEMPORARY_PREFIX) or path.parent.name == _REMOVED
            if not hidden:
                make_folders(self._root / _REMOVED)
            self._remove(path, path if hidden else self._removed(task))

    def check_writable(self) -> None:
        if self._root.is_dir():
            with tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=self._root) as trial:
                trial.write(b"x")
                trial.flush()
                return os.fsync(trial.fileno())
        above = next(folder for folder in self._root.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))

    def etag(self) -> object:
        found = []
        for name in _list(self._root):
            with suppress(OSError):
                status = os.stat(self._root / name / CURRENT)
                found.append((name, status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(sorted(found))

    def _versions(self, task: str) -> Path:
        return self._root / task / _VERSIONS

    def _version_folders(self, task: str) -> list[str]:
        """Names of all versions, half ones without ``task.json`` too."""
        return [name for name in _list(self._versions(task)) if is_version(name)]

    def _removed(self, task: str) -> Path:
        return self._root / _REMOVED / f"{task}@{uuid.uuid4().hex}"

    def _trash(self, task: str) -> list[Path]:
        """Folders of a task that was removed, and is not deleted yet."""
        return [self._root / _REMOVED / name for name in _list(self._root / _REMOVED) if name.startswith(f"{task}@")]

    def _leftovers(self, task: str) -> list[Path]:
        folder = self._root / task
        names = _list(folder)
        found = [folder / name for name in names if name.startswith(TEMPORARY_PREFIX)]
        current = self.read_current(task)
        if current is None:  # never served, or removed by a Foreword that deleted piece by piece
            found += [folder / name for name in names if name in (_VERSIONS, SPLIT, USED)]
            if folder.is_dir() and len(found) == len(names):
                found = [folder]
        else:
            served = current + (self.read_file(task, SPLIT) or b"")
            half = {*self._version_folders(task)} - {*self.versions(task)}
            found += [self._versions(task) / name for name in half if name.encode() not in served]
        return sorted([*found, *self._trash(task)])

    def _remove(self, path: Path, hidden: Path) -> None:
        """Rename a file or folder to where no reader looks, which is final, and delete it there."""
        if hidden != path:
            os.rename(path, hidden)
            for folder in {path.parent, hidden.parent}:
                fsync_folder(folder)
        if hidden.is_dir() and not hidden.is_symlink():
            shutil.rmtree(hidden)
        else:
            hidden.unlink(missing_ok=True)


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
