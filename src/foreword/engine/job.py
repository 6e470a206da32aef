"""`Job`: something with the model that the engine's thread does between two steps of generation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """One piece of work, no longer than a step; whoever handed it in waits for the result.

    Args:
        work: does it.
        scored: prompts whose scores it makes, for the engine's counters.
        ready: whether there is room for it now; the engine goes on stepping until there is.
    """

    def __init__(self, work: Callable[[], T], scored: int = 0, ready: Callable[[], bool] = lambda: True) -> None:
        self.scored = scored
        self.ready = ready
        self._work = work
        self._future: Future[T] = Future()

    def run(self) -> None:
        """Keep the result, or the error; nothing if nobody waits for it any more."""
        if not self._future.set_running_or_notify_cancel():
            return
        try:
            self._future.set_result(self._work())
        except Exception as error:  # it belongs to the caller, not to the engine
            self._future.set_exception(error)

    def result(self) -> T:
        """Wait for it. Raises what the work raised, or CancelledError."""
        return self._future.result()

    def cancel(self) -> None:
        """Leave it undone, if it has not begun."""
        self._future.cancel()
