"""`TimedStream`: an answer on its way, timed and counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from foreword.engine.protocol import Chunk, Stream
from foreword.server.operations.auth import Caller
from foreword.server.operations.metrics import Metrics, Times


@dataclass(frozen=True)
class UsageRecorder:
    """Who wants to know of the answers to one request.

    Attributes:
        metrics: gets times and tokens.
        task: the label that they go under.
        caller: is charged.
    note: the request's line in the log.
    """

    metrics: Metrics
    task: str
    caller: Caller
    note: dict

    def over(self, streams: Sequence[Stream]) -> Sequence[Stream]:
        """The same answers, watched."""
        began, times = time.perf_counter(), self.metrics.times(self.task)
        return [TimedStream(stream, self, times, began, first=not index) for index, stream in enumerate(streams)]


class TimedStream:
    """A `Stream`; what it used is counted once, when it ends, is cancelled or is let go.

    Args:
        stream: the answer.
        watch: who wants to know.
        times: of its task.
        began: when it was asked for, by `time.perf_counter`.
        first: its prompt counts; that of a further answer to the same prompt does not.
    """

    def __init__(self, stream: Stream, watch: UsageRecorder, times: Times, began: float, *, first: bool) -> None:
        self.request, self.cached_tokens = stream.request, 0
        self._stream, self._watch, self._times, self._began = stream, watch, times, began
        self._last: float | None = None
        self._tokens = 0
        self._open = True
        self._first = first

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._stream:
            self._see(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._stream:
            self._see(chunk)
            yield chunk

    def cancel(self) -> None:
        self._stream.cancel()
        self._close()

    def _see(self, chunk: Chunk) -> None:
        watch, now = self._watch, time.perf_counter()
        self.cached_tokens = self._stream.cached_tokens
        if chunk.token_ids:
            self._tokens += len(chunk.token_ids)
            if self._last is None:
                self._times.first(now - self._began)
                watch.note.setdefault("first_token_seconds", round(now - self._began, 4))
            else:
                self._times.between(now - self._last)
            self._last = now
        if chunk.finish_reason is not None:
            if chunk.finish_reason in ("stop", "length"):
                self._times.whole(now - self._began)
            self._close()

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        request = self.request
        prompt = request.prompt_tokens if self._first else 0
        cached = request.prefix_length + self.cached_tokens if self._first else 0
        watch = self._watch
        watch.metrics.used(watch.task, prompt, cached, self._tokens)
        watch.caller.charge(prompt + self._tokens)
        for name, count in (("prompt_tokens", prompt), ("cached_tokens", cached), ("answer_tokens", self._tokens)):
            watch.note[name] = watch.note.get(name, 0) + count
