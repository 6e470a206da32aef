"""`ResidentTasks`: LRU cache of loaded tasks, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from foreword.core import Task
from foreword.errors import UsageError


class ResidentTasks:
    """Tasks by ``name@version``; the least recently used is evicted first, pinned ones never.

    A request holds its task by reference, so an evicted one stays alive until its last request is done.

    Args:
        prefix_bytes: bound of everything that the tasks hold (prefixes, adapters, heads), in bytes; none if ``None``.

    Attributes:
        nbytes: of the tasks in the cache.
        loads, evictions: tasks that were added and evicted since the start.
        hits: lookups that found their task.
    """

    def __init__(self, prefix_bytes: int | None = None) -> None:
        self.nbytes = self.loads = self.evictions = self.hits = 0
        self._max_bytes = prefix_bytes
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._pinned: dict[str, str] = {}

    def __contains__(self, ref: str) -> bool:
        return ref in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, ref: str) -> Task | None:
        """The task, if it is in the cache, as the most recently used."""
        if ref in self._tasks:
            self.hits += 1
            self._tasks.move_to_end(ref)
        return self._tasks.get(ref)

    def add(self, task: Task) -> None:
        """Add a task; one that is larger than the bound by itself is evicted at once. A new version of a pinned task is
        pinned in the place of the one before it."""
        self.loads += 1
        self._discard(task.ref)
        self._tasks[task.ref] = task
        self.nbytes += task.nbytes
        if task.name in self._pinned:
            self._pinned[task.name] = task.ref
        self._evict()

    def pin(self, task: Task) -> None:
        """Never evict this task; it is added if it is not in the cache.

        Raises UsageError if all pinned tasks together would not fit.
        """
        pinned = {**self._pinned, task.name: task.ref}
        others = sum(kept.nbytes for ref, kept in self._tasks.items() if ref in pinned.values() and ref != task.ref)
        if self._max_bytes is not None and others + task.nbytes > self._max_bytes:
            raise UsageError(
                f"task '{task.name}' cannot be pinned: pinned tasks would hold {others + task.nbytes:,} bytes, and "
                f"--prefix-bytes is {self._max_bytes:,}; unpin another, or start the server with more."
            )
        if task.ref not in self._tasks:
            self.add(task)
        self._pinned = pinned
        self._evict()

    def unpin(self, name: str) -> None:
        """Let a task be evicted again."""
        self._pinned.pop(name, None)

    def is_pinned(self, name: str) -> bool:
        return name in self._pinned

    def remove(self, name: str) -> None:
        """Remove all versions of a task, pinned or not."""
        self.unpin(name)
        for ref in [ref for ref, task in self._tasks.items() if task.name == name]:
            self._discard(ref)

    def _evict(self) -> None:
        pinned = set(self._pinned.values())
        for ref in [ref for ref in self._tasks if ref not in pinned]:
            if self._max_bytes is None or self.nbytes <= self._max_bytes:
                return
            self._discard(ref)
            self.evictions += 1

    def _discard(self, ref: str) -> None:
        task = self._tasks.pop(ref, None)
        self.nbytes -= task.nbytes if task is not None else 0
