"""`UsageRecorder`: times and token counts of streams, for the metrics, the caller's limits and the access log."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.engine.protocol import Chunk, Stream
from foreword.server.operations.auth import Caller
from foreword.server.operations.metrics import LatencyObservers, Metrics
from foreword.server.operations.rate_limits import Reservation


@dataclass(frozen=True)
class UsageRecorder:
    """Where the times and token counts of one HTTP request are recorded.

    Attributes:
        metrics: gets times and token counts.
        task: their label in the metrics.
        caller: its limits count the tokens.
        log_fields: fields of the request's line in the access log.
        version: of the task, if it is served beside another.
        reservation: the most that all streams may take of the caller's tokens; ``None`` without limits.
        charges_prompts: whether prompts are part of it still; False once `charge_prompts` has counted them.
    """

    metrics: Metrics
    task: str
    caller: Caller
    log_fields: dict[str, Any]
    version: str | None = None
    reservation: Reservation | None = None
    charges_prompts: bool = True

    def charge_prompts(self, tokens: int) -> UsageRecorder:
        """Count the prompts, which are about to be run, whether or not answers to them follow. Returns the recorder of
        those answers."""
        if self.reservation is not None:
            self.reservation.settle(tokens, tokens)
        return replace(self, charges_prompts=False)

    def track(self, streams: Sequence[Stream]) -> Sequence[Stream]:
        """The completions of one prompt as streams that record themselves."""
        arrival, observers = time.perf_counter(), self.metrics.latency_observers(self.task, self.version)
        return [
            TimedStream(stream, self, observers, arrival, counts_prompt=index == 0)
            for index, stream in enumerate(streams)
        ]


class TimedStream:
    """A `Stream` that observes its latencies, and counts its tokens once, when it ends or is cancelled.

    Args:
        stream: of the engine.
        recorder: gets the token counts.
        observers: of the task's latencies.
        arrival: when the request came, by `time.perf_counter`.
        counts_prompt: whether its prompt tokens count; those of a further completion of the same prompt do not.
    """

    def __init__(
        self,
        stream: Stream,
        recorder: UsageRecorder,
        observers: LatencyObservers,
        arrival: float,
        *,
        counts_prompt: bool,
    ) -> None:
        self.request, self.cached_tokens = stream.request, 0
        self._stream, self._recorder, self._observers, self._arrival = stream, recorder, observers, arrival
        self._counts_prompt = counts_prompt
        self._last_token_at: float | None = None
        self._answer_tokens = 0
        self._counted = False

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._stream:
            self._observe(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._stream:
            self._observe(chunk)
            yield chunk

    def cancel(self) -> None:
        self._stream.cancel()
        self._count()

    def _observe(self, chunk: Chunk) -> None:
        now = time.perf_counter()
        self.cached_tokens = self._stream.cached_tokens
        if chunk.token_ids:
            self._answer_tokens += len(chunk.token_ids)
            if self._last_token_at is None:
                self._observers.time_to_first_token(now - self._arrival)
                self._recorder.log_fields.setdefault("first_token_seconds", round(now - self._arrival, 4))
            else:
                self._observers.inter_token(now - self._last_token_at)
            self._last_token_at = now
        if chunk.finish_reason is not None:
            if chunk.finish_reason in ("stop", "length"):
                self._observers.total(now - self._arrival)
            self._count()

    def _count(self) -> None:
        if self._counted:
            return
        self._counted = True
        request, answer, recorder = self.request, self._answer_tokens, self._recorder
        prompt = request.prompt_tokens if self._counts_prompt else 0
        cached = request.prefix_length + self.cached_tokens if self._counts_prompt else 0
        recorder.metrics.count_tokens(recorder.task, prompt, cached, answer, recorder.version)
        if recorder.reservation is not None:
            charged = prompt if recorder.charges_prompts else 0
            recorder.reservation.settle(charged + request.sampling.max_tokens, charged + answer)
        for name, count in (("prompt_tokens", prompt), ("cached_tokens", cached), ("answer_tokens", answer)):
            recorder.log_fields[name] = recorder.log_fields.get(name, 0) + count
