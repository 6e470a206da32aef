"""`FairThreads`: worker threads that the keys of a server share, none of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class FairThreads:
    """Runs functions in threads.

    Args:
        threads: at most, at a time.
        of_key: the most of them that run for one key; its other functions wait among themselves.
    """

    def __init__(self, threads: int, of_key: int) -> None:
        self._each = of_key
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
