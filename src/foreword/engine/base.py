"""`EngineBase`: everything around the model in an engine that steps by itself: queues, jobs, streams, errors.

`Engine` and `LlamaCppEngine` derive from it; they add the model and its cache.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, Self, TypeVar
from weakref import ref

from foreword.core import ModelIdentity, SamplingParams
from foreword.engine.engine_thread import EngineThread
from foreword.engine.grammar import GrammarCompiler
from foreword.engine.job import Job
from foreword.engine.job_queue import JobQueue
from foreword.engine.protocol import ANONYMOUS, Chunk, FinishReason, Request, Sender
from foreword.engine.request_validator import RequestValidator
from foreword.engine.scheduler import AllocationError, KVCacheManager, ScheduledTokens, Scheduler
from foreword.engine.sequence import Sequence
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler
from foreword.errors import EngineBusy, EngineError, RequestError
from foreword.text.detokenize import Detokenizer

T = TypeVar("T")

COUNTERS = ("requests", "steps", "tokens_run", "tokens_generated", "cancelled", "failed", "scored")
NOT_FINITE = "the model gave no finite logits for this request"


def not_finite(request: Request, dtype: object) -> str:
    """The sentence about a request whose logits are not finite, with what is likely to mend it."""
    if str(dtype).removeprefix("torch.") == "float16":
        return f"{NOT_FINITE}: it overflows in float16; load it with --dtype bfloat16 or float32."
    if request.prefix is not None or request.soft is not None or request.adapter is not None:
        return f"{NOT_FINITE}; its prefix may be broken: check it with foreword bank verify, or learn it again."
    return f"{NOT_FINITE}; its weights may be broken: check it with foreword doctor."


class EngineBase(ABC):
    """An engine whose `step` is: run a job if it is their turn, take in requests, schedule, run the model, postprocess.

    Any thread may submit, score, cancel and read statistics; requests and jobs wait in queues for the one thread that
    steps, which alone touches the model, the cache and the sequences.

    Args:
        name, tokenizer, identity, causal, is_encoder_decoder: see `EngineProtocol`.
        eos_token_ids: tokens that end a text.
        validator: refuses requests that can never run; its context is the engine's.
        scheduler: over the cache.
        cache: of the requests' keys and values.
        max_waiting: requests that may wait; more are refused at once.
    """

    dtype: object = None
    """What the model computes in, for sentences about logits that are not finite."""

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        identity: ModelIdentity,
        causal: bool,
        is_encoder_decoder: bool,
        eos_token_ids: frozenset[int],
        validator: RequestValidator,
        scheduler: Scheduler,
        cache: KVCacheManager,
        max_waiting: int,
    ) -> None:
        self.name, self.tokenizer, self.identity = name, tokenizer, identity
        self.causal, self.is_encoder_decoder, self.context = causal, is_encoder_decoder, validator.context
        self.loads_prefixes = False
        self.scheduler = scheduler
        self._cache, self._eos_token_ids, self._max_waiting = cache, eos_token_ids, max_waiting
        self._validator = validator
        self._grammars = GrammarCompiler(tokenizer, identity.vocab_size, eos_token_ids)
        self._new_sequences: deque[Sequence] = deque()
        self._jobs = JobQueue()
        self._jobs_ahead = 0.0  # seconds that jobs had more than the steps since then
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._lock = threading.Lock()  # nothing is queued once the engine is closed
        self._closed = False
        self._thread = EngineThread(self.step, self._on_crash)

    @abstractmethod
    def _make_sequence(
        self, request: Request, sampler: TokenSampler, detokenizer: Detokenizer, stream: ref[ChunkStream]
    ) -> Sequence:
        """The state of a request; called by the thread that submits it."""

    @abstractmethod
    def _execute_model(self, scheduled: list[ScheduledTokens]) -> list[int | None]:
        """Run a step's tokens. Returns the next token for each entry that needs logits, in their order; ``None`` where
        none could be sampled."""

    def step(self) -> bool:
        """Run one step. Returns whether there was work."""
        started = time.perf_counter()
        may_run_job = self._jobs_ahead <= 0
        if ran_job := may_run_job and self._run_next_job():
            self._jobs_ahead = time.perf_counter() - started
        self._add_new_sequences()
        self._abort_cancelled()
        try:
            scheduled = self.scheduler.schedule()
        except AllocationError as error:
            self._fail(error.sequence, error.__cause__ or error)
            return True
        started = time.perf_counter()
        if scheduled:
            self._run(scheduled)
        # While there is work of both kinds, steps have as much time as jobs.
        self._jobs_ahead -= time.perf_counter() - started if scheduled else self._jobs_ahead
        return ran_job or not may_run_job or bool(scheduled) or bool(self.scheduler.running)

    def submit(self, request: Request) -> ChunkStream:
        """Queue a request and return its stream; see `EngineProtocol.submit`."""
        self.check(request)
        if (waiting := self._num_waiting()) >= self._max_waiting:
            raise EngineBusy(f"{waiting} requests are waiting already, as many as may; ask again in a while.")
        stream = ChunkStream(request, self._thread.wake)
        constraint = request.sampling.constraint
        grammar = self._grammars.compile(constraint) if constraint is not None else None
        sampler = TokenSampler(request, self._eos_token_ids, grammar)
        params = request.sampling
        detokenizer = Detokenizer(
            self.tokenizer,
            params.stop,
            params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
        )
        sequence = self._make_sequence(request, sampler, detokenizer, ref(stream))
        self._enqueue(lambda: self._new_sequences.append(sequence))
        return stream

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Chunk]]:
        """The chunks of every answer, in the order of the requests, which run together."""
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            yield list(stream)

    @property
    def alive(self) -> bool:
        """False once the engine is closed or broken."""
        return not self._closed

    def check(self, request: Request) -> None:
        """Raise RequestError, PromptTooLong, ModelMismatch or UnsupportedModel for a request that can never run."""
        self._validator.check(request)

    def all_stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        """Tokens that end an answer: the request's own, and the model's unless it ignores them."""
        own = frozenset(params.stop_token_ids)
        return own if params.ignore_eos else self._eos_token_ids | own

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, and counters since the start; ``preempted`` counts preemptions."""
        return {
            **self._counters,
            "waiting": self._num_waiting(),
            "running": len(self.scheduler.running),
            "preempted": self.scheduler.num_preemptions,
        }

    def close(self) -> None:
        """Stop stepping; unfinished requests end as cancelled."""
        self._thread.stop()
        self._shut_down("cancelled")
        self._grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_jobs(self, jobs: Items[Job[T]], sender: Sender = ANONYMOUS) -> list[T]:
        """Have the engine's thread run jobs between its steps, and wait for their results; tenants take turns.

        Raises EngineError if one fails or the engine is closed; the others are cancelled.
        """
        self._enqueue(lambda: self._jobs.extend(sender.tenant, jobs))
        try:
            return [job.result() for job in jobs]
        except CancelledError:
            raise EngineError("the engine was closed before it was done; start it again.") from None
        except Exception as error:
            raise EngineError(f"the engine could not do this: {type(error).__name__}: {error}") from error
        finally:
            for job in jobs:
                job.cancel()

    def _num_waiting(self) -> int:
        return len(self._new_sequences) + self.scheduler.num_waiting

    def _enqueue(self, enqueue: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed; start it again.")
            enqueue()
        self._thread.wake()

    def _run_next_job(self) -> bool:
        """Run the next job, if there is room for it; returns whether it ran."""
        if (job := self._jobs.pop_ready()) is None:
            return False
        job.run()
        self._counters["scored"] += job.num_scored
        return True

    def _add_new_sequences(self) -> None:
        while self._new_sequences:
            self.scheduler.add(self._new_sequences.popleft())
            self._counters["requests"] += 1

    def _abort_cancelled(self) -> None:
        for sequence in self.scheduler.sequences:
            if sequence.cancelled:
                self._abort(sequence, "cancelled")

    def _run(self, scheduled: list[ScheduledTokens]) -> None:
        """Execute the model and postprocess. If a step of several sequences fails, each is run apart: whoever is at
        fault then fails alone."""
        try:
            sampled = self._execute_model(scheduled)
        except Exception as error:
            if len(scheduled) == 1:
                self._fail(scheduled[0].sequence, error)
            else:
                self.scheduler.run_apart(each.sequence for each in scheduled)
        else:
            self._postprocess(scheduled, sampled)

    def _postprocess(self, scheduled: list[ScheduledTokens], sampled: list[int | None]) -> None:
        """Record what was computed, and append the sampled tokens to their sequences."""
        tokens = iter(sampled)
        self._counters["steps"] += 1
        self._counters["tokens_run"] += sum(each.num_tokens for each in scheduled)
        for each in scheduled:
            each.sequence.num_computed_tokens = each.end
            self._cache.cache_tokens(each.sequence)
            if each.needs_logits:
                token = next(tokens)
                try:
                    self._append_token(each.sequence, token)
                except Exception as error:  # of its text or its stop conditions
                    self._fail(each.sequence, error)

    def _append_token(self, sequence: Sequence, token: int | None) -> None:
        """Append a token, send its chunk, and finish the sequence if the token or its text ends the answer."""
        if token is None:
            if sequence.sampler.failure is not None:
                raise sequence.sampler.failure
            if sequence.sampler.error is not None:  # of the request's own constraint or options
                return self._refuse(sequence, RequestError(sequence.sampler.error))
            return self._abort(sequence, "error", not_finite(sequence.request, self.dtype))
        self._counters["tokens_generated"] += 1
        sequence.output_token_ids.append(token)
        stops = token in self.all_stop_token_ids(sequence.request.sampling)
        text = "" if stops else sequence.detokenizer.push(token)  # a stop token is not part of the text
        chunk = Chunk(text, (token,), logprobs=sequence.sampler.logprobs)
        if stops or sequence.detokenizer.stopped or sequence.sampler.constraint_complete:
            self._finish(sequence, "stop", chunk)
        elif len(sequence.output_token_ids) == sequence.request.sampling.max_tokens:
            self._finish(sequence, "length", chunk)
        else:
            _put(sequence, chunk)

    def _finish(self, sequence: Sequence, reason: FinishReason, last: Chunk) -> None:
        """Remove a sequence whose answer is complete; its last chunk gets the text that was held back."""
        last = replace(last, text=last.text + sequence.detokenizer.finish(), finish_reason=reason)
        self.scheduler.remove(sequence)
        _put(sequence, last)

    def _abort(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """Remove a sequence whose answer is incomplete, with an empty last chunk."""
        self.scheduler.remove(sequence)
        self._counters["cancelled"] += reason == "cancelled"
        self._counters["failed"] += reason == "error"
        _put(sequence, Chunk("", (), reason, error))

    def _refuse(self, sequence: Sequence, error: RequestError) -> None:
        """Remove a sequence that its own request makes impossible; its reader gets the error."""
        self.scheduler.remove(sequence)
        self._counters["failed"] += 1
        _put(sequence, error)

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        if sequence in self.scheduler.sequences:  # else it has ended, and what failed came behind
            self._abort(sequence, "error", f"the engine could not run this request: {type(error).__name__}: {error}")

    def _on_crash(self, error: Exception) -> None:
        self._shut_down("error", f"the engine broke down: {type(error).__name__}: {error}")

    def _shut_down(self, reason: FinishReason, error: str | None = None) -> None:
        """Accept nothing more, and end every sequence and job."""
        with self._lock:
            self._closed = True
        self._add_new_sequences()
        self._abort_cancelled()
        for sequence in self.scheduler.sequences:
            self._abort(sequence, reason, error)
        self._jobs.cancel()


def _put(sequence: Sequence, chunk: Chunk | RequestError) -> None:
    stream = sequence.stream()
    if stream is not None:
        stream.cached_tokens = sequence.num_cached_tokens or 0
        stream.put(chunk)
