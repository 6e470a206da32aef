"""`EngineBase`: what every engine that steps by itself does around its model: queues, jobs, streams, endings."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar
from weakref import ref

from foreword.core import ModelIdentity, SamplingParams
from foreword.engine.admission import Admission
from foreword.engine.grammar import Grammars
from foreword.engine.job import Job
from foreword.engine.loop import Loop
from foreword.engine.protocol import Chunk, FinishReason, Request
from foreword.engine.scheduler import Cache, ScheduledTokens, Scheduler
from foreword.engine.sequence import Sequence
from foreword.engine.stream import AnswerStream
from foreword.engine.token_sampler import TokenSampler, token_sampler
from foreword.errors import EngineBusy, EngineError
from foreword.text.detokenize import Detokenizer

T = TypeVar("T")

COUNTERS = ("requests", "steps", "tokens_run", "tokens_generated", "cancelled", "failed", "scored")
NOT_FINITE = "the model gave no finite logits for this request; its prefix may be broken."


class EngineBase(ABC):
    """``step()`` is schedule, run, postprocess; what runs, and on what, is the engine's own.

    Any thread may submit, score, cancel and ask for statistics; whatever they bring waits in queues for the one
    thread that steps, which alone touches the model, the cache and the sequences.

    Args:
        name, tokenizer, identity, causal, decoder: see `EngineProtocol`.
        end_ids: tokens that end a text.
        admission: refuses what can never run; its context is the engine's.
        scheduler: over the cache.
        cache: of the requests' keys and values.
        max_waiting: requests that may wait; more are refused at once.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        identity: ModelIdentity,
        causal: bool,
        decoder: bool,
        end_ids: frozenset[int],
        admission: Admission,
        scheduler: Scheduler,
        cache: Cache,
        max_waiting: int,
    ) -> None:
        self.name, self.tokenizer, self.identity = name, tokenizer, identity
        self.causal, self.decoder, self.context = causal, decoder, admission.context
        self.reads_bank = False
        self.scheduler = scheduler
        self._cache, self._end_ids, self._max_waiting = cache, end_ids, max_waiting
        self._admission = admission
        self._grammars = Grammars(tokenizer, identity.vocab_size, end_ids)
        self._arrivals: deque[Sequence] = deque()
        self._jobs: deque[Job] = deque()
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._lock = threading.Lock()  # nothing arrives once the engine is closed
        self._closed = False
        self._loop = Loop(self.step, self._crash)

    @abstractmethod
    def _sequence(
        self, request: Request, how: TokenSampler | None, detokenizer: Detokenizer, stream: ref[AnswerStream]
    ) -> Sequence:
        """The state of a request; called by the thread of whoever submits."""

    @abstractmethod
    def _run(self, plan: list[ScheduledTokens]) -> list[int | None]:
        """Run a step; the next token of every work that samples, in their order, ``None`` for one without any."""

    def submit(self, request: Request) -> AnswerStream:
        """Queue a request and return its stream; see `EngineProtocol.submit`."""
        self.check(request)
        if (waiting := self._waits()) >= self._max_waiting:
            raise EngineBusy(f"{waiting} requests are waiting already, as many as may; ask again in a while.")
        stream = AnswerStream(request, self._loop.wake)
        how = token_sampler(request, self._end_ids, self._grammars.grammar)
        detokenizer = Detokenizer(self.tokenizer, request.sampling.stop, request.sampling.min_tokens)
        self._hand_over(self._arrivals, [self._sequence(request, how, detokenizer, ref(stream))])
        return stream

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Chunk]]:
        """All answers in the order of their requests, each as the chunks it came in; they run together."""
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            yield list(stream)

    @property
    def alive(self) -> bool:
        """False once it is closed or broken."""
        return not self._closed

    def check(self, request: Request) -> None:
        """Raise for a request that can never run."""
        self._admission.check(request)

    def ending(self, params: SamplingParams) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._end_ids.union(params.stop_token_ids) if not params.ignore_eos else frozenset(params.stop_token_ids)

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, and counters since the start.

        ``preempted`` is how often a sequence had to give way.
        """
        return {
            **self._counters,
            "waiting": self._waits(),
            "running": len(self.scheduler.running),
            "preempted": self.scheduler.preempted,
        }

    def step(self) -> bool:
        """Schedule, run, postprocess. Returns whether there was work."""
        worked = self._do_job()
        self._receive()
        plan = self.scheduler.schedule()
        try:
            if plan:
                self._postprocess(plan, self._run(plan))
        except Exception as error:  # one bad step fails its requests, not the engine
            self._fail(plan, error)
        return worked or bool(plan)

    def close(self) -> None:
        """Stop stepping; unfinished requests end as cancelled."""
        self._loop.stop()
        self._end_all("cancelled")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _handed_over(self, jobs: Items[Job]) -> Iterator[None]:
        """Let the engine's thread do jobs; in the block, wait for their results."""
        self._hand_over(self._jobs, jobs)
        try:
            yield
        except CancelledError:
            raise EngineError("the engine was closed before it was done; start it again.") from None
        except Exception as error:
            raise EngineError(f"the engine could not do this: {type(error).__name__}: {error}") from error
        finally:
            for job in jobs:
                job.cancel()

    def _waits(self) -> int:
        return len(self._arrivals) + self.scheduler.waits

    def _hand_over(self, queue: deque[T], items: Items[T]) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed; start it again.")
            queue.extend(items)
        self._loop.wake()

    def _do_job(self) -> bool:
        if not self._jobs or not self._jobs[0].ready():
            return False
        job = self._jobs.popleft()
        job.run()
        self._counters["scored"] += job.scored
        return True

    def _receive(self) -> None:
        """Take in what has arrived, and let go of what nobody waits for."""
        while self._arrivals:
            self.scheduler.add(self._arrivals.popleft())
            self._counters["requests"] += 1
        for sequence in self.scheduler.sequences:
            if sequence.abandoned:
                self._end(sequence, "cancelled")

    def _postprocess(self, plan: list[ScheduledTokens], chosen: list[int | None]) -> None:
        tokens = iter(chosen)
        self._counters["steps"] += 1
        self._counters["tokens_run"] += sum(work.tokens for work in plan)
        for work in plan:
            work.sequence.computed = work.end
            self._cache.remember(work.sequence)
            if work.samples:
                self._accept(work.sequence, next(tokens))

    def _accept(self, sequence: Sequence, token: int | None) -> None:
        if token is None:
            return self._end(sequence, "error", error=sequence.error or NOT_FINITE)
        self._counters["tokens_generated"] += 1
        sequence.generated.append(token)
        ends = token in self.ending(sequence.request.sampling)
        text = "" if ends else sequence.detokenizer.push(token)  # a token that ends is not part of the text
        new = Chunk(text, (token,), logprobs=sequence.logprobs)
        if ends or sequence.detokenizer.stopped or sequence.complete:
            self._finish(sequence, "stop", new)
        elif len(sequence.generated) == sequence.request.sampling.max_tokens:
            self._finish(sequence, "length", new)
        else:
            _put(sequence, new)

    def _finish(self, sequence: Sequence, reason: FinishReason, last: Chunk) -> None:
        self.scheduler.remove(sequence)
        _put(sequence, replace(last, text=last.text + sequence.detokenizer.finish(), finish_reason=reason))

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None = None,
    ) -> None:
        self.scheduler.remove(sequence)
        self._counters["cancelled"] += reason == "cancelled"
        self._counters["failed"] += reason == "error"
        _put(sequence, Chunk("", (), reason, error))

    def _fail(self, plan: list[ScheduledTokens], error: Exception) -> None:
        sentence = f"the engine could not run this request: {type(error).__name__}: {error}"
        alive = set(self.scheduler.running)
        for work in plan:
            if work.sequence in alive:
                self._end(work.sequence, "error", error=sentence)

    def _crash(self, error: Exception) -> None:
        self._end_all("error", f"the engine broke down: {type(error).__name__}: {error}")

    def _end_all(self, reason: FinishReason, error: str | None = None) -> None:
        with self._lock:
            self._closed = True
        self._receive()
        for sequence in self.scheduler.sequences:
            self._end(sequence, reason, error=error)
        while self._jobs:
            self._jobs.popleft().cancel()


def _put(sequence: Sequence, chunk: Chunk) -> None:
    stream = sequence.stream()
    if stream is not None:
        stream.reused = sequence.reused or 0
        stream.put(chunk)
