"""`JobQueue`: jobs that wait for the engine's thread; tenants take turns, and each one's jobs keep their order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from threading import Lock

from foreword.engine.job import Job


class JobQueue:
    """A queue for each tenant that has jobs, in the order of their turns; filled by any thread."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()
        self._lock = Lock()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def extend(self, tenant: str, jobs: Sequence[Job]) -> None:
        """Add the jobs of one call behind the tenant's own."""
        with self._lock:
            if jobs:
                self._queues.setdefault(tenant, deque()).extend(jobs)

    def pop_ready(self) -> Job | None:
        """The first job of the tenant whose turn it is; ``None`` if there is none, or no room for it yet."""
        with self._lock:
            if not self._queues:
                return None
            tenant, queue = next(iter(self._queues.items()))
            if not queue[0].is_ready():
                return None
            job = queue.popleft()
            # The turn is over: the others come first.
            del self._queues[tenant]
            if queue:
                self._queues[tenant] = queue
            return job

    def cancel(self) -> None:
        """Cancel all jobs."""
        with self._lock:
            for queue in self._queues.values():
                for job in queue:
                    job.cancel()
            self._queues.clear()
