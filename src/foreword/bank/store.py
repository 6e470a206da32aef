"""Where a bank keeps its bytes: a local disk (`local.py`) or an object store (`remote.py`).

A store moves bytes and knows how to make them appear at once. What a task, a version or a conflict is,
`bank.py` decides, once for both. Names and versions that come in are already checked.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class Store(Protocol):
    """The verbs of both. Every one may raise `OSError`, which the bank turns into one sentence."""

    @property
    def place(self) -> str:
        """How errors name the bank: a path or a URL."""
        ...

    def tasks(self) -> list[str]:
        """Names that have a ``current``."""
        ...

    def versions(self, task: str) -> list[str]:
        """Committed versions, in any order; empty for an unknown task."""
        ...

    def read_current(self, task: str) -> bytes | None:
        """The bytes of ``current``, or ``None`` when there is none."""
        ...

    def write_current(self, task: str, version: str) -> None:
        """Serve ``version`` from now on, at one stroke."""
        ...

    def record(self, task: str, version: str) -> dict[str, Any]:
        """The checked ``task.json`` of a version. Raises `CorruptFile`."""
        ...

    def folder(self, task: str, version: str, *, fresh: bool = False) -> Path:
        """A local folder with the files of a version; ``fresh`` goes past any cache. Raises `CorruptFile`."""
        ...

    def lock(self, task: str) -> AbstractContextManager[None]:
        """Keeps other writers of this task out, where the store can."""
        ...

    def workspace(self, task: str) -> AbstractContextManager[Path]:
        """An empty folder that readers never see, gone afterwards."""
        ...

    def claim(self, task: str) -> int:
        """The next number of a version. Raises `PublishConflict` when another writer took it."""
        ...

    def commit(self, task: str, version: str, folder: Path) -> None:
        """Make the version written in ``folder`` exist, at one stroke, without serving it yet."""
        ...

    def remove_version(self, task: str, version: str) -> None:
        """Delete one version."""
        ...

    def remove_task(self, task: str) -> None:
        """Delete ``current`` first, then everything else of the task."""
        ...

    def try_write(self) -> None:
        """Write a small object and take it away again; a place that is not there yet stays so."""
        ...

    def stamp(self) -> object:
        """Changes whenever a ``current`` was written or deleted."""
        ...
