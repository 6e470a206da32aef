"""`ResidentTasks`: loaded tasks, as many as their prefixes fit into a bound of memory."""

from __future__ import annotations

from collections import OrderedDict

from foreword.core import Task


class ResidentTasks:
    """Tasks by ``name@version``; the one used longest ago leaves first.

    A request holds its task by reference, so what leaves here stays alive until its last request is done.

    Args:
        prefix_bytes: bound of everything that the tasks hold (prefixes, adapters, heads), in bytes; none if ``None``.
    """

    def __init__(self, prefix_bytes: int | None = None) -> None:
        self._limit = prefix_bytes
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self.nbytes = 0

    def __contains__(self, ref: str) -> bool:
        return ref in self._tasks

    def get(self, ref: str) -> Task | None:
        """A task that is here, marked as just used."""
        if ref in self._tasks:
            self._tasks.move_to_end(ref)
        return self._tasks.get(ref)

    def add(self, task: Task) -> None:
        """Keep a task; one that is larger than the bound by itself is not kept."""
        self._discard(task.ref)
        self._tasks[task.ref] = task
        self.nbytes += task.nbytes
        while self._limit is not None and self.nbytes > self._limit:
            self._discard(next(iter(self._tasks)))

    def _discard(self, ref: str) -> None:
        task = self._tasks.pop(ref, None)
        self.nbytes -= task.nbytes if task is not None else 0
