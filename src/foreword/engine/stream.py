"""`AnswerStream`: the way of an answer from the engine's thread to a reader in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from foreword.engine.protocol import Chunk, Request


class Bell:
    """Wakes the readers of many answers, once an event loop and not once an answer: a step brings a token to each, and
    every wake-up lets the loop's thread take the interpreter from the one that steps."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[AnswerStream]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, stream: AnswerStream) -> None:
        """Wake its reader at the next `ring`; called by the thread that rings."""
        self._waiting.setdefault(loop, []).append(stream)

    def ring(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for loop, streams in waiting.items():
            try:
                loop.call_soon_threadsafe(_wake_all, streams)
            except RuntimeError:  # the loop was closed under its readers, so nobody will read on
                for stream in streams:
                    stream.cancelled = True


def _wake_all(streams: list[AnswerStream]) -> None:
    for stream in streams:
        stream.wake()


class AnswerStream:
    """Chunks of one answer. A stream that is cancelled, or that nobody holds any more, ends at the next step.

    Args:
        request: what is answered.
        on_cancel: called after `cancelled` was set.
    """

    def __init__(self, request: Request, on_cancel: Callable[[], object]) -> None:
        self.request = request
        self.reused = 0
        self.cancelled = False
        self._on_cancel = on_cancel
        self._chunks: deque[Chunk] = deque()
        self._ready = threading.Condition()
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._ended = False

    def put(self, chunk: Chunk, bell: Bell) -> None:
        """Called by the engine's thread, which rings the bell when it has put all that it has."""
        with self._ready:
            self._chunks.append(chunk)
            self._ready.notify()
            if self._reader is not None:
                bell.add(self._reader[0], self)

    def wake(self) -> None:
        """Let the reader look again; called in its event loop."""
        if self._reader is not None:
            self._reader[1].set()

    def cancel(self) -> None:
        self.cancelled = True
        self._on_cancel()

    def __iter__(self) -> Iterator[Chunk]:
        while not self._ended:
            with self._ready:
                while not self._chunks:
                    self._ready.wait()
            yield self._take()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._ready:
            self._reader = loop, ready
        try:
            while not self._ended:
                ready.clear()
                while self._chunks:
                    yield self._take()
                if not self._ended:
                    await ready.wait()
        finally:
            with self._ready:
                self._reader = None

    def _take(self) -> Chunk:
        chunk = self._chunks.popleft()
        self._ended = chunk.finish_reason is not None
        return chunk
