"""`FairThreads`: worker threads that the keys of a server share, none of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class FairThreads:
    """Runs functions in up to ``threads`` threads, of which those of one key have half at most.

    Args:
        threads: at least 2.
    """

    def __init__(self, threads: int) -> None:
        self._each = threads // 2
        self._all = CapacityLimiter(threads)
        self._of_key: dict[str | None, CapacityLimiter] = {}

    async def run(self, key: str | None, function: Callable[..., T], *args: object) -> T:
        """The result of ``function``, called in a thread. Not cancelled once it runs.

        Args:
            key: the name of who asks.
        """
        own = self._of_key.setdefault(key, CapacityLimiter(self._each))
        async with own:
            return await to_thread.run_sync(function, *args, limiter=self._all)
