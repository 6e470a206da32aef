"""The embedded engine: continuous batching of requests with different prefixes on a Transformers model."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foreword.core import KVPrefix
from foreword.engine import sampler
from foreword.engine.cache import PagedCache
from foreword.engine.loop import AnswerStream, Loop
from foreword.engine.protocol import Chunk, FinishReason, Request
from foreword.engine.runner import Runner
from foreword.engine.scheduler import Scheduler, Work
from foreword.engine.scorer import score
from foreword.engine.sequence import Sequence
from foreword.errors import EngineError, PromptTooLong, RequestError, UnsupportedModel
from foreword.models import LanguageModel
from foreword.text.detokenize import Detokenizer
from foreword.text.request import Prompt
from foreword.text.verbalizer import WordTrie


class Engine:
    """Generates and scores with prefixes; ``step()`` is schedule, run, postprocess.

    Args:
        lm: a causal model.
        cache_bytes: bound of the requests' own keys and values, in bytes; memory is touched as it is used.
        max_batch: sequences a step at most.
        step_tokens: tokens a step at most.
        max_model_len: positions a request may take, prefix and answer included; the model's context by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        cache_bytes: int = 1 << 30,
        max_batch: int = 64,
        step_tokens: int = 512,
        max_model_len: int | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        if not lm.causal:
            raise UnsupportedModel(
                f"{lm.identity.architecture} is an encoder; this engine generates with causal models."
            )
        self.name, self.tokenizer, self.identity = lm.name, lm.tokenizer, lm.identity
        self.context = min((n for n in (lm.context, max_model_len) if n is not None), default=None)
        self._lm = lm
        self._allow_other_weights = allow_other_weights
        page_bytes = PagedCache.bytes_per_page(lm.identity.layers, lm.dtype)
        self.cache = PagedCache(lm.identity.layers, max(1, cache_bytes // page_bytes), lm.dtype, lm.device)
        self.scheduler = Scheduler(self.cache, step_tokens, max_batch)
        self._runner = Runner(lm, self.cache)
        self._step_tokens = step_tokens
        self._ids = itertools.count()
        self._streams: dict[AnswerStream, Sequence] = {}
        self._outlets: dict[Sequence, tuple[AnswerStream, Detokenizer]] = {}
        self._prefixes: WeakKeyDictionary[KVPrefix, dict[int, KVPrefix]] = WeakKeyDictionary()
        self._counters: Counter[str] = Counter()
        # Guards queues and streams; held only for moments. The model is guarded apart, for a whole forward.
        self._lock = threading.Lock()
        self._model_lock = threading.Lock()
        self._closed = False
        self._loop = Loop(self.step)

    def submit(self, request: Request) -> AnswerStream:
        """Queue a request and return its stream; see `EngineProtocol.submit`."""
        self.check(request)
        prefix = self._prefix(request.prefix, request.prefix_length)
        sequence = Sequence(next(self._ids), request, prefix, sampler.generator(request.sampling))
        stream = AnswerStream(request, self._cancel)
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed; start it again.")
            self._streams[stream] = sequence
            self._outlets[sequence] = (stream, Detokenizer(self.tokenizer, request.sampling.stop))
            self.scheduler.add(sequence)
            self._counters["requests"] += 1
        self._loop.wake()
        return stream

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Chunk]]:
        """All answers in the order of their requests, each as the chunks it came in; they run together."""
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            yield list(stream)

    @torch.inference_mode()
    def score(self, prompts: Items[Prompt], trie: WordTrie) -> Tensor:
        """See `EngineProtocol.score`. Runs between the steps of generation, in pieces of a few steps' size."""
        for prompt in prompts:
            self._check_length(prompt.prefix_length + len(prompt.token_ids) + 1)
            if prompt.prefix is not None:
                self._check_model(prompt.prefix)
        pieces = []
        for piece in score(self._lm, prompts, trie, self._prefix, 4 * self._step_tokens):
            with self._model_lock:
                pieces.append(piece())
        scores = torch.empty(len(prompts), trie.labels)
        for places, found in pieces:
            scores[places] = found.cpu()
        self._counters["scored"] += len(prompts)
        return scores

    def step(self) -> bool:
        """Schedule, run, postprocess. Returns whether there was work."""
        with self._lock:
            self._drop_cancelled()
            plan = self.scheduler.schedule()
        if not plan:
            return False
        try:
            with self._model_lock:
                chosen = self._run(plan)
        except Exception as error:  # one bad step fails its requests, not the engine
            self._fail(plan, error)
            return True
        with self._lock:
            self._postprocess(plan, chosen)
        return True

    def check(self, request: Request) -> None:
        """Raise for a request that can never run."""
        if not request.token_ids:
            raise RequestError("the request is empty behind its prefix; send at least one token.")
        if not all(0 <= id < self.identity.vocab_size for id in request.token_ids):
            raise RequestError(f"a token id is outside 0..{self.identity.vocab_size - 1}.")
        self._check_length(request.prompt_tokens + 1)
        wanted = request.prompt_tokens + request.sampling.max_tokens
        if self.context is not None and wanted > self.context:
            raise PromptTooLong(
                f"the prompt has {request.prompt_tokens} tokens and max_tokens is {request.sampling.max_tokens}, "
                f"together more than the context of {self.context}; ask for at most "
                f"{self.context - request.prompt_tokens} tokens."
            )
        own = len(request.token_ids) + request.sampling.max_tokens - 1
        if PagedCache.pages_for(own) > self.cache.pages:
            raise PromptTooLong(f"the request needs {own} positions, the cache holds fewer; shorten it.")
        if request.prefix is not None:
            self._check_model(request.prefix)

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, ``free_pages``, and counters since the start."""
        with self._lock:
            return {
                **self._counters,
                "waiting": len(self.scheduler.waiting),
                "running": len(self.scheduler.running),
                "pages": self.cache.pages,
                "free_pages": self.cache.free,
            }

    def close(self) -> None:
        """Stop stepping; unfinished requests end as cancelled."""
        self._loop.stop()
        with self._lock:
            self._closed = True
            for sequence in list(self._outlets):
                self._end(sequence, "cancelled")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, plan: list[Work]) -> list[int]:
        sampling = [work.sequence for work in plan if work.samples]
        return sampler.sample(self._runner.run(plan), sampling)

    def _postprocess(self, plan: list[Work], chosen: list[int]) -> None:
        tokens = iter(chosen)
        self._counters["steps"] += 1
        self._counters["tokens_run"] += sum(work.end - work.start for work in plan)
        self._counters["tokens_generated"] += len(chosen)
        for work in plan:
            token = next(tokens) if work.samples else None
            work.sequence.computed = work.end
            if token is not None and not work.sequence.cancelled:
                self._accept(work.sequence, token)

    def _accept(self, sequence: Sequence, token: int) -> None:
        sequence.generated.append(token)
        stream, detokenizer = self._outlets[sequence]
        text = detokenizer.push(token)
        reason = self._reason(sequence, token, detokenizer.stopped)
        if reason is None:
            stream.put(Chunk(text, (token,)))
        else:
            self._end(sequence, reason, text + detokenizer.finish(), (token,))

    def _reason(self, sequence: Sequence, token: int, stopped: bool) -> FinishReason | None:
        params = sequence.request.sampling
        ended = token in self._lm.end_ids and not params.ignore_eos
        if stopped or ended or token in params.stop_token_ids:
            return "stop"
        return "length" if len(sequence.generated) >= params.max_tokens else None

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        error: str | None = None,
    ) -> None:
        stream, _ = self._outlets.pop(sequence)
        del self._streams[stream]
        self.scheduler.remove(sequence)
        stream.put(Chunk(text, token_ids, reason, error))

    def _cancel(self, stream: AnswerStream) -> None:
        with self._lock:
            if stream in self._streams:
                self._streams[stream].cancelled = True
        self._loop.wake()

    def _drop_cancelled(self) -> None:
        for sequence in [sequence for sequence in self._outlets if sequence.cancelled]:
            self._counters["cancelled"] += 1
            self._end(sequence, "cancelled")

    def _fail(self, plan: list[Work], error: Exception) -> None:
        sentence = f"the engine could not run this request: {type(error).__name__}: {error}"
        with self._lock:
            self._counters["failed"] += len(plan)
            for work in plan:
                self._end(work.sequence, "error", error=sentence)

    def _prefix(self, prefix: KVPrefix | None, length: int) -> KVPrefix | None:
        """The used part in the model's dtype and on its device: one copy for all requests."""
        if prefix is None or length == 0:
            return None
        with self._lock:
            heads = self._prefixes.setdefault(prefix, {})
            if length not in heads:
                heads[length] = prefix.head(length).to(dtype=self._lm.dtype, device=self._lm.device)
            return heads[length]

    def _check_model(self, prefix: KVPrefix) -> None:
        if prefix not in self._prefixes:
            prefix.model.check(
                self.identity, "the prefix of this request", allow_other_weights=self._allow_other_weights
            )

    def _check_length(self, tokens: int) -> None:
        if self.context is not None and tokens > self.context:
            raise PromptTooLong(
                f"the prompt has {tokens - 1} tokens with its prefix, the context is {self.context}; shorten it."
            )
