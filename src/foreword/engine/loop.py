"""The thread that steps an engine while there is work, and the streams through which answers leave it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from foreword.engine.protocol import Chunk, Request


class AnswerStream:
    """Chunks of one answer, handed from the engine's thread to a reader in a thread or in an event loop."""

    def __init__(self, request: Request, on_cancel: Callable[[AnswerStream], None]) -> None:
        self.request = request
        self._on_cancel = on_cancel
        self._chunks: deque[Chunk] = deque()
        self._ready = threading.Condition()
        self._wake: Callable[[], object] | None = None

    def put(self, chunk: Chunk) -> None:
        """Called by the engine's thread."""
        with self._ready:
            self._chunks.append(chunk)
            self._ready.notify()
            if self._wake is not None:
                self._wake()

    def cancel(self) -> None:
        self._on_cancel(self)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            with self._ready:
                while not self._chunks:
                    self._ready.wait()
                chunk = self._chunks.popleft()
            yield chunk
            if chunk.finish_reason is not None:
                return

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._ready:
            self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        try:
            while True:
                ready.clear()
                while self._chunks:
                    chunk = self._chunks.popleft()
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
                await ready.wait()
        finally:
            with self._ready:
                self._wake = None


class Loop:
    """Runs ``step`` in one thread until it returns False, and again whenever it is woken.

    Args:
        step: does one step of work and says whether there is more.
    """

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._work = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._work.set()

    def stop(self) -> None:
        """Let the step in progress end, and the thread with it."""
        self._stopping = True
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait()
            self._work.clear()
            while not self._stopping and self._step():
                pass
