"""The embedded engine: continuous batching of requests with different prefixes on a Transformers model."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from weakref import ref

from torch import Tensor

from foreword.core import KVPrefix
from foreword.engine import sampler, scorer
from foreword.engine.admission import Admission
from foreword.engine.base import EngineBase
from foreword.engine.cache import PAGE, PagedCache
from foreword.engine.device_cache import DeviceCache
from foreword.engine.job import Job
from foreword.engine.protocol import Request, TokenLogprob
from foreword.engine.runner import Runner
from foreword.engine.scheduler import ScheduledTokens, Scheduler
from foreword.engine.sequence import Sequence
from foreword.engine.stream import AnswerStream
from foreword.engine.token_sampler import TokenSampler
from foreword.errors import UnsupportedModel
from foreword.models import LanguageModel
from foreword.models.activations import activations, check_room
from foreword.openmp import release_openmp_threads
from foreword.text.detokenize import Detokenizer
from foreword.text.label_scorers import LabelScorer
from foreword.text.request import Prompt


class Engine(EngineBase):
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
        UnsupportedModel: an encoder-decoder; `foreword.engine.encoder_decoder.EncoderDecoderEngine` evaluates it.
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
        context = min((n for n in (lm.context, max_model_len) if n is not None), default=None)
        pages = max(1, cache_bytes // PagedCache.bytes_per_page(lm.identity.layers, lm.dtype))
        self.cache = PagedCache(lm.identity.layers, pages, lm.dtype, lm.device, reuse=reuse)
        super().__init__(
            name=lm.name,
            tokenizer=lm.tokenizer,
            identity=lm.identity,
            causal=lm.causal,
            decoder=lm.decoder,
            end_ids=lm.end_ids,
            admission=Admission(lm.identity, context, pages * PAGE, allow_other_weights, _in_front),
            scheduler=Scheduler(self.cache, step_tokens, max_batch),
            cache=self.cache,
            max_waiting=max_waiting,
        )
        self._lm, self._step_tokens = lm, step_tokens
        self._runner = Runner(lm, self.cache)
        self._residents = DeviceCache(lm.model, lm.dtype, lm.device)
        if lm.causal:
            self._runner.warm_up()
        if start:
            release_openmp_threads()  # of the thread that loaded the model; from now on another one runs it
            self._loop.start()

    def score(self, prompts: Items[Prompt], choice: LabelScorer) -> Tensor:
        """See `EngineProtocol.score`. Runs between the steps of generation, in pieces of a step's size."""
        for prompt in prompts:
            self._admission.check_prompt(prompt, choice.longest)
        return self._read(prompts, scorer.by_choice(choice))

    def likelihood(self, prompts: Items[Prompt]) -> list[Tensor]:
        """See `EngineProtocol.likelihood`. Runs as `score` does, with the logits of a step's tokens at a time."""
        self._check_causal()
        for prompt in prompts:
            self._admission.check_prompt(prompt, 0)
        asked = [prompt.measured for prompt in prompts]
        found = self._read([prompt for prompt in asked if prompt.places], scorer.following(self._step_tokens))
        return list(found[:, 0].split([len(prompt.places) for prompt in asked]))

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`."""
        self._check_causal()
        self._admission.check_prompt(prompt, 0)
        asked = replace(prompt, places=()).measured
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

    def check(self, request: Request) -> None:
        """Raise for a request that can never run."""
        if not self.causal:
            raise UnsupportedModel(f"{self.name} is an encoder, which writes no text; classify or tag with it.")
        super().check(request)

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, ``pages``, ``free_pages``, and counters since the start.

        ``tokens_reused`` are tokens of prompts that were in the cache already, ``preempted`` how often a sequence had
        to give way.
        """
        own = {"tokens_reused": self.scheduler.reused, "pages": self.cache.pages, "free_pages": self.cache.free}
        return {**super().statistics(), **own}

    def close(self) -> None:
        """Stop stepping; unfinished requests end as cancelled."""
        super().close()
        self.cache.close()

    def _sequence(
        self, request: Request, how: TokenSampler | None, detokenizer: Detokenizer, stream: ref[AnswerStream]
    ) -> Sequence:
        return Sequence(
            request,
            self._residents.prefix(request.prefix, request.prefix_length),
            how,
            detokenizer,
            stream,
            self._residents.soft(request.soft),
            self._residents.adapter(request.adapter),
            self._residents.root(request),
        )

    def _run(self, plan: list[ScheduledTokens]) -> list[int | None]:
        sampling = [work.sequence for work in plan if work.samples]
        return sampler.sample(self._runner.run(plan), sampling)

    def _read(self, prompts: Items[Prompt], reading: scorer.ScoringSpec) -> Tensor:
        pieces = scorer.pieces(self._lm, prompts, reading, self._residents, self._step_tokens)
        with self._handed_over([piece.job for piece in pieces]):
            return scorer.gathered(pieces, prompts, reading.labels)

    def _check_causal(self) -> None:
        if not self.causal:
            raise UnsupportedModel(f"{self.name} is an encoder, which sees what follows; ask a causal model.")


def _in_front(length: int) -> int:
    """Positions that a prefix takes in the cache, whole pages."""
    return PAGE * PagedCache.pages_in_front(length)
