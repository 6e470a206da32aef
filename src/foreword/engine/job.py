"""`Job`: a call with the model that the engine's thread makes between two steps of generation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A function for the engine's thread to call, no longer than a step, and the future of its result.

    Args:
        fn: the function.
        num_scored: prompts that it scores, for the engine's counters.
        ready: whether there is room for it now; the engine goes on stepping until there is.
    """

    def __init__(self, fn: Callable[[], T], num_scored: int = 0, ready: Callable[[], bool] = lambda: True) -> None:
        self.num_scored = num_scored
        self._ready = ready
        self._fn = fn
        self._future: Future[T] = Future()

    def is_ready(self) -> bool:
        """Whether it can run now. A job for which that cannot be said has failed, and only has to be taken off."""
        try:
            return self._ready()
        except Exception as error:
            if self._future.set_running_or_notify_cancel():
                self._future.set_exception(error)
            return True

    def run(self) -> None:
        """Call the function and keep its result or its error; does nothing after `cancel`, or if it has failed."""
        if self._future.done() or not self._future.set_running_or_notify_cancel():
            return
        try:
            self._future.set_result(self._fn())
        except Exception as error:  # it belongs to the caller, not to the engine
            self._future.set_exception(error)

    def result(self) -> T:
        """Wait for the result. Raises what the function raised, or CancelledError."""
        return self._future.result()

    def cancel(self) -> None:
        """Do not run it, unless it has begun."""
        self._future.cancel()
