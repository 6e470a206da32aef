"""`Store`: the storage backend of a bank, a local disk (`local.py`) or an object store (`remote.py`).

A store reads, writes and commits bytes atomically; `bank.py` decides which version is served and what conflicts. The
names and versions that it gets have been checked.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

CURRENT = "current"
"""The file of a task that names the version that is served."""


class Store(Protocol):
    """A storage backend. Every method may raise `OSError`, which the bank turns into a `BankError`."""

    @property
    def location(self) -> str:
        """The path or URL of the root."""
        ...

    def tasks(self) -> list[str]:
        """Names of the tasks that have a ``current``."""
        ...

    def known(self) -> list[str]:
        """Names under which anything is stored: those of `tasks`, and those that killed writers left something of."""
        ...

    def versions(self, task: str) -> list[str]:
        """Committed versions, in any order; empty for an unknown task."""
        ...

    def read_current(self, task: str) -> bytes | None:
        """The bytes of ``current``, or ``None`` when there is none."""
        ...

    def write_current(self, task: str, version: str) -> None:
        """Serve ``version`` from now on, atomically."""
        ...

    def read_file(self, task: str, file: str) -> bytes | None:
        """The bytes of a small file beside ``current``, or ``None`` when there is none."""
        ...

    def write_file(self, task: str, file: str, data: bytes) -> None:
        """Write a small file beside ``current``, atomically."""
        ...

    def remove_file(self, task: str, file: str) -> None:
        """Delete a small file beside ``current``, if it is there."""
        ...

    def record(self, task: str, version: str) -> dict[str, Any]:
        """The checked ``task.json`` of a version. Raises `CorruptFile`."""
        ...

    def folder(self, task: str, version: str, *, fresh: bool = False) -> Path:
        """A local folder with the files of a version; ``fresh`` goes past any cache. Raises `CorruptFile`."""
        ...

    def lock(self, task: str) -> AbstractContextManager[None]:
        """Locks a task against other writers, where the store has locks."""
        ...

    def staging_folder(self, task: str) -> AbstractContextManager[Path]:
        """An empty local folder to write a version into, removed afterwards; readers never see it."""
        ...

    def claim(self, task: str) -> int:
        """Reserve the next version number. Raises `PublishConflict` if another writer has just reserved it."""
        ...

    def commit(self, task: str, version: str, folder: Path) -> None:
        """Store the version written in ``folder``, atomically, without serving it yet."""
        ...

    def remove_version(self, task: str, version: str) -> None:
        """Delete one version: it is not there any more in one step, and its bytes are deleted then."""
        ...

    def remove_task(self, task: str) -> None:
        """Delete a task: it is not there any more in one step, and its bytes are deleted then."""
        ...

    def was_removed(self, task: str, version: str | None) -> bool:
        """Whether a removal of the task, or of this version or number, was interrupted before its bytes were gone."""
        ...

    def leftovers(self, task: str) -> list[str]:
        """Paths under the root of what interrupted writers left of a task; complete only under its lock."""
        ...

    def sweep(self, task: str) -> None:
        """Delete the `leftovers` of a task, under its lock."""
        ...

    def check_writable(self) -> None:
        """Write an empty object and remove it again; a root that does not exist is not created."""
        ...

    def etag(self) -> object:
        """A value that changes when any ``current`` is written or deleted."""
        ...
