"""`ChunkStream`: hands the chunks of one answer from the engine's thread to a reader, a thread or an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from foreword.engine.protocol import Chunk, Request
from foreword.errors import ForewordError


class ChunkStream:
    """A thread-safe queue of chunks; implements `foreword.engine.protocol.Stream`.

    Args:
        request: what is answered.
        on_cancel: called after `cancelled` was set.

    Attributes:
        cached_tokens: see `foreword.engine.protocol.Stream`.
        cancelled: set by `cancel`; the engine ends the answer at its next step.
    """

    def __init__(self, request: Request, on_cancel: Callable[[], object]) -> None:
        self.request = request
        self.cached_tokens = 0
        self.cancelled = False
        self._on_cancel = on_cancel
        self._chunks: deque[Chunk | ForewordError] = deque()
        self._ready = threading.Condition()
        self._wake: Callable[[], object] | None = None
        self._ended = False

    def put(self, chunk: Chunk | ForewordError) -> None:
        """Called by the engine's thread; an error ends the stream and is raised in its reader."""
        with self._ready:
            self._chunks.append(chunk)
            self._ready.notify()
            if self._wake is None:
                return
            try:
                self._wake()
            except RuntimeError:  # the reader's event loop was closed, so the rest is not read
                self._wake = None
                self.cancelled = True

    def cancel(self) -> None:
        self.cancelled = True
        self._on_cancel()

    def __iter__(self) -> Iterator[Chunk]:
        while not self._ended:
            with self._ready:
                while not self._chunks:
                    self._ready.wait()
            yield self._pop()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._ready:
            self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        try:
            while not self._ended:
                ready.clear()
                while self._chunks:
                    yield self._pop()
                if not self._ended:
                    await ready.wait()
        finally:
            with self._ready:
                self._wake = None

    def _pop(self) -> Chunk:
        chunk = self._chunks.popleft()
        if isinstance(chunk, ForewordError):
            self._ended = True
            raise chunk
        self._ended = chunk.finish_reason is not None
        return chunk
