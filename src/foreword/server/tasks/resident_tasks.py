"""`ResidentTasks`: loaded tasks, as many as their prefixes fit into a bound of memory."""

from __future__ import annotations

from collections import OrderedDict

from foreword.core import Task
from foreword.errors import UsageError


class ResidentTasks:
    """Tasks by ``name@version``; the one used longest ago leaves first, but for pinned ones.

    A request holds its task by reference, so what leaves here stays alive until its last request is done.

    Args:
        prefix_bytes: bound of everything that the tasks hold (prefixes, adapters, heads), in bytes; none if ``None``.

    Attributes:
        nbytes: what the tasks that are here hold, in bytes.
        loads, evictions: how many tasks have come and had to leave, since the start.
        hits: how often a task was here when it was looked for.
    """

    def __init__(self, prefix_bytes: int | None = None) -> None:
        self.nbytes = self.loads = self.evictions = self.hits = 0
        self._limit = prefix_bytes
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._pinned: dict[str, str] = {}

    def __contains__(self, ref: str) -> bool:
        return ref in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, ref: str) -> Task | None:
        """A task that is here, marked as just used."""
        if ref in self._tasks:
            self.hits += 1
            self._tasks.move_to_end(ref)
        return self._tasks.get(ref)

    def add(self, task: Task) -> None:
        """Keep a task; one that is larger than the bound by itself is not kept. A version of a pinned task takes the
        place of the one before it."""
        self.loads += 1
        self._discard(task.ref)
        self._tasks[task.ref] = task
        self.nbytes += task.nbytes
        if task.name in self._pinned:
            self._pinned[task.name] = task.ref
        self._make_room()

    def pin(self, task: Task) -> None:
        """Keep a task that is here, whatever else is used.

        Raises UsageError if all pinned tasks together would not fit.
        """
        pinned = {**self._pinned, task.name: task.ref}
        held = sum(kept.nbytes for ref, kept in self._tasks.items() if ref in pinned.values() and ref != task.ref)
        if self._limit is not None and held + task.nbytes > self._limit:
            raise UsageError(
                f"task '{task.name}' cannot be pinned: pinned tasks would hold {held + task.nbytes:,} bytes, and "
                f"--prefix-bytes is {self._limit:,}; unpin another, or start the server with more."
            )
        if task.ref not in self._tasks:
            self.add(task)
        self._pinned = pinned
        self._make_room()

    def unpin(self, name: str) -> None:
        """Treat a task like any other again."""
        self._pinned.pop(name, None)

    def is_pinned(self, name: str) -> bool:
        return name in self._pinned

    def forget(self, name: str) -> None:
        """Let go of a task that is no longer in the bank, with all its versions."""
        self.unpin(name)
        for ref in [ref for ref, task in self._tasks.items() if task.name == name]:
            self._discard(ref)

    def _make_room(self) -> None:
        kept = set(self._pinned.values())
        for ref in [ref for ref in self._tasks if ref not in kept]:
            if self._limit is None or self.nbytes <= self._limit:
                return
            self._discard(ref)
            self.evictions += 1

    def _discard(self, ref: str) -> None:
        task = self._tasks.pop(ref, None)
        self.nbytes -= task.nbytes if task is not None else 0
