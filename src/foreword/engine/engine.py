"""The embedded engine: continuous batching of requests with different prefixes on a Transformers model."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar
from weakref import ref

from torch import Tensor

from foreword.core import KVPrefix, SamplingParams
from foreword.engine import sampler, scorer
from foreword.engine.admission import Admission
from foreword.engine.cache import PAGE, PagedCache
from foreword.engine.chooser import chooser
from foreword.engine.grammar import Grammars
from foreword.engine.job import Job
from foreword.engine.loop import Loop
from foreword.engine.protocol import Chunk, FinishReason, Request, TokenLogprob
from foreword.engine.residents import Residents
from foreword.engine.runner import Runner
from foreword.engine.scheduler import Scheduler, Work
from foreword.engine.sequence import Sequence
from foreword.engine.stream import AnswerStream
from foreword.errors import EngineBusy, EngineError, UnsupportedModel
from foreword.models import LanguageModel
from foreword.models.activations import activations, check_room
from foreword.text.detokenize import Detokenizer
from foreword.text.request import Prompt
from foreword.text.scoring import Choice
from foreword.workers import release_workers

T = TypeVar("T")

COUNTERS = ("requests", "steps", "tokens_run", "tokens_generated", "cancelled", "failed", "scored")
NOT_FINITE = "the model gave no finite logits for this request; its prefix may be broken."


class Engine:
    """Generates and scores with prefixes; ``step()`` is schedule, run, postprocess.

    Any thread may submit, score, cancel and ask for statistics; whatever they bring waits in queues for the one
    thread that steps, which alone touches the model, the cache and the sequences. Close the engine, or use it as a
    context manager: its thread holds the model.

    Args:
        lm: a causal model, or an encoder, which scores and does not generate.
        cache_bytes: bound of the requests' own keys and values, in bytes; memory is touched as it is used.
        max_batch: sequences a step at most.
        step_tokens: tokens a step at most.
        max_waiting: requests that may wait; more are refused at once.
        reuse: requests that begin with tokens of others, behind the same prefix, do not run them again.
        max_model_len: positions a request may take, prefix and answer included; the model's context by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.
        start: step in a thread of its own; without it, somebody has to call `step`.

    Raises:
        UnsupportedModel: an encoder-decoder; `foreword.engine.decoder.DecoderEngine` evaluates it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        cache_bytes: int = 1 << 30,
        max_batch: int = 64,
        step_tokens: int = 512,
        max_waiting: int = 4096,
        reuse: bool = True,
        max_model_len: int | None = None,
        allow_other_weights: bool = False,
        start: bool = True,
    ) -> None:
        if lm.decoder:
            raise UnsupportedModel(
                f"{lm.name} is an encoder-decoder ({lm.identity.architecture}): it learns and evaluates soft prompts, "
                "but nothing serves it; use a causal model or an encoder."
            )
        self.name, self.tokenizer, self.identity = lm.name, lm.tokenizer, lm.identity
        self.causal, self.decoder, self.reads_bank = lm.causal, lm.decoder, False
        self.context = min((n for n in (lm.context, max_model_len) if n is not None), default=None)
        self._lm, self._end_ids = lm, lm.end_ids
        self._step_tokens, self._max_waiting = step_tokens, max_waiting
        pages = max(1, cache_bytes // PagedCache.bytes_per_page(lm.identity.layers, lm.dtype))
        self.cache = PagedCache(lm.identity.layers, pages, lm.dtype, lm.device, reuse=reuse)
        self.scheduler = Scheduler(self.cache, step_tokens, max_batch)
        self._runner = Runner(lm, self.cache)
        self._residents = Residents(lm.model, lm.dtype, lm.device)
        self._admission = Admission(self.identity, self.context, pages * PAGE, allow_other_weights)
        self._grammars = Grammars(lm.tokenizer, lm.identity.vocab_size, lm.end_ids)
        self._arrivals: deque[Sequence] = deque()
        self._jobs: deque[Job] = deque()
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._lock = threading.Lock()  # nothing arrives once the engine is closed
        self._closed = False
        self._loop = Loop(self.step, self._crash)
        if lm.causal:
            self._runner.warm_up()
        if start:
            release_workers()  # of the thread that loaded the model; from now on another one runs it
            self._loop.start()

    def submit(self, request: Request) -> AnswerStream:
        """Queue a request and return its stream; see `EngineProtocol.submit`."""
        self.check(request)
        if (waiting := self._waits()) >= self._max_waiting:
            raise EngineBusy(f"{waiting} requests are waiting already, as many as may; ask again in a while.")
        stream = AnswerStream(request, self._loop.wake)
        sequence = Sequence(
            request,
            self._residents.prefix(request.prefix, request.prefix_length),
            chooser(request, self._end_ids, self._grammars.grammar),
            Detokenizer(self.tokenizer, request.sampling.stop, request.sampling.min_tokens),
            ref(stream),
            self._residents.soft(request.soft),
            self._residents.adapter(request.adapter),
            self._residents.root(request),
        )
        self._hand_over(self._arrivals, [sequence])
        return stream

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Chunk]]:
        """All answers in the order of their requests, each as the chunks it came in; they run together."""
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            yield list(stream)

    def score(self, prompts: Items[Prompt], choice: Choice) -> Tensor:
        """See `EngineProtocol.score`. Runs between the steps of generation, in pieces of a step's size."""
        for prompt in prompts:
            self._admission.check_prompt(prompt, choice.longest)
        return self._read(prompts, scorer.by_choice(choice))

    def likelihood(self, prompts: Items[Prompt]) -> list[Tensor]:
        """See `EngineProtocol.likelihood`. Runs as `score` does, with the logits of a step's tokens at a time."""
        self._check_causal()
        for prompt in prompts:
            self._admission.check_prompt(prompt, 0)
        asked = [scorer.measured(prompt) for prompt in prompts]
        found = self._read([prompt for prompt in asked if prompt.places], scorer.following(self._step_tokens))
        return list(found[:, 0].split([len(prompt.places) for prompt in asked]))

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`."""
        self._check_causal()
        self._admission.check_prompt(prompt, 0)
        asked = scorer.measured(replace(prompt, places=()))
        top = min(top, self.identity.vocab_size)
        if not asked.places:
            return []
        rows = self._read([asked], scorer.following(self._step_tokens, top)).tolist()
        return [
            TokenLogprob(
                asked.token_ids[place + 1], row[0], tuple(zip(map(int, row[1 : 1 + top]), row[1 + top :], strict=True))
            )
            for place, row in zip(asked.places, rows, strict=True)
        ]

    def prefill(self, token_ids: Items[int]) -> KVPrefix:
        """See `EngineProtocol.prefill`. Runs between the steps of generation, a step's tokens at a time."""
        if not self.causal:
            raise UnsupportedModel(f"{self.name} is an encoder, whose text sees the request too; learn a prefix.")
        check_room(self.name, self.context, len(token_ids), None)
        prefix: KVPrefix | None = None
        for first in range(0, len(token_ids), self._step_tokens):
            part = token_ids[first : first + self._step_tokens]
            job = Job(partial(activations, self._lm, part, prefix))
            with self._handed_over([job]):
                prefix = job.result()
        assert prefix is not None
        return prefix

    @property
    def alive(self) -> bool:
        """False once it is closed or broken."""
        return not self._closed

    def check(self, request: Request) -> None:
        """Raise for a request that can never run."""
        if not self.causal:
            raise UnsupportedModel(f"{self.name} is an encoder, which writes no text; classify or tag with it.")
        self._admission.check(request)

    def ending(self, params: SamplingParams) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._end_ids.union(params.stop_token_ids) if not params.ignore_eos else frozenset(params.stop_token_ids)

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, ``pages``, ``free_pages``, and counters since the start.

        ``tokens_reused`` are tokens of prompts that were in the cache already, ``preempted`` how often a sequence had
        to give way.
        """
        return {
            **self._counters,
            "waiting": self._waits(),
            "running": len(self.scheduler.running),
            "preempted": self.scheduler.preempted,
            "tokens_reused": self.scheduler.reused,
            "pages": self.cache.pages,
            "free_pages": self.cache.free,
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
        self.cache.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, prompts: Items[Prompt], reading: scorer.Reading) -> Tensor:
        pieces = scorer.pieces(self._lm, prompts, reading, self._residents, self._step_tokens)
        with self._handed_over([piece.job for piece in pieces]):
            return scorer.gathered(pieces, prompts, reading.labels)

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

    def _check_causal(self) -> None:
        if not self.causal:
            raise UnsupportedModel(f"{self.name} is an encoder, which sees what follows; ask a causal model.")

    def _waits(self) -> int:
        return len(self._arrivals) + self.scheduler.waits

    def _hand_over(self, queue: deque[T], items: Items[T]) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed; start it again.")
            queue.extend(items)
        self._loop.wake()

    def _do_job(self) -> bool:
        if not self._jobs:
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

    def _run(self, plan: list[Work]) -> list[int | None]:
        sampling = [work.sequence for work in plan if work.samples]
        return sampler.sample(self._runner.run(plan), sampling)

    def _postprocess(self, plan: list[Work], chosen: list[int | None]) -> None:
        tokens = iter(chosen)
        self._counters["steps"] += 1
        self._counters["tokens_run"] += sum(work.tokens for work in plan)
        for work in plan:
            work.sequence.computed = work.end
            self.cache.remember(work.sequence)
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

    def _fail(self, plan: list[Work], error: Exception) -> None:
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
