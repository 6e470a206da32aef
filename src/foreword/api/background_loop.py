"""`BackgroundLoop`: an event loop in a thread of its own, in which calls that are written as coroutines are waited for.

A notebook has a running event loop already, where nothing may block, and `asyncio.run` makes a new one at every call:
connections and streams live in this loop, whoever asks.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from foreword.errors import EngineError

T = TypeVar("T")
P = ParamSpec("P")

_END: Any = object()
_ROUNDS = 8
_CLOSED = "this engine or client is closed; open it again."


class BackgroundLoop:
    """Runs coroutines and asynchronous generators in its thread, for callers with and without an event loop.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop, self._closing = asyncio.new_event_loop(), False
        # What is handed to the loop comes before the end of it, or is refused: behind the end nothing runs, and whoever
        # waited would wait for ever. Reentrant, since garbage collection may close an iterator inside.
        self._handing_over = threading.RLock()
        self._open: set[AsyncGenerator[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # before modules go, which iterators left open would still use

    @property
    def is_running(self) -> bool:
        """Whether it is not closed."""
        return not self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine's result; Ctrl-C cancels it."""
        future = self._submit(coroutine)
        try:
            return future.result()
        except CancelledError:  # by `close`, in another thread
            raise EngineError(_CLOSED) from None
        finally:
            future.cancel()

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine from any event loop; cancelling this cancels it."""
        if asyncio.get_running_loop() is self._loop:
            return await coroutine
        try:
            return await asyncio.wrap_future(self._submit(coroutine))
        except asyncio.CancelledError:
            if self._closing:  # not the caller's own cancellation
                raise EngineError(_CLOSED) from None
            raise

    def iterate(self, items: AsyncGenerator[T]) -> Iterator[T]:
        """The items of an asynchronous generator, which is closed when this iterator is."""
        self._keep(items)
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item
        finally:
            self._close_soon(items)

    async def aiterate(self, items: AsyncGenerator[T]) -> AsyncIterator[T]:
        """`iterate` from another event loop."""
        self._keep(items)
        try:
            while (item := await self.arun(_next(items))) is not _END:
                yield item
        finally:
            self._close_soon(items)

    def close(self) -> None:
        """Cancel what runs, and end the thread. May be called twice, and by several threads, which wait for the end."""
        with self._handing_over:
            first, self._closing = not self._closing, True
        if not first:
            self._thread.join()
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(_cancel_all(list(self._open)), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        with self._handing_over:
            if not self._closing:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise EngineError(_CLOSED)

    def _keep(self, items: AsyncGenerator[Any]) -> None:
        with self._handing_over:
            if not self._closing:
                self._open.add(items)

    def _close_soon(self, items: AsyncGenerator[T]) -> None:
        # Without waiting: garbage collection may call this in the loop's own thread. `close` closes what is left open.
        with self._handing_over:
            if not self._closing:
                self._open.discard(items)
                asyncio.run_coroutine_threadsafe(_aclose(items), self._loop)


class Blocking(Generic[P, T]):
    """A method that waits for the result of its coroutine twin, on the instance's ``loop``.

    Attributes:
        twin: the coroutine function.
    """

    def __init__(self, twin: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self.twin = twin
        self.__doc__ = twin.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[P, T]:
        def wait(*args: P.args, **kwargs: P.kwargs) -> T:
            return instance.loop.run(self.twin(instance, *args, **kwargs))

        return cast("Callable[P, T]", update_wrapper(wait, self.twin))


async def _next(items: AsyncGenerator[T]) -> T:
    return await anext(items, _END)


async def _aclose(items: AsyncGenerator[Any]) -> None:
    await items.aclose()


async def _cancel_all(items: Sequence[AsyncGenerator[Any]]) -> None:
    """Cancel all other tasks and close generators, and wait for what that leaves to be done."""
    for task in _others():
        task.cancel()
    await asyncio.gather(*_others(), return_exceptions=True)
    for each in items:
        await each.aclose()
    for _ in range(_ROUNDS):  # a generator inside another is closed in a task of its own
        await asyncio.sleep(0)
        await asyncio.gather(*_others(), return_exceptions=True)


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}
