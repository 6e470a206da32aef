"""`Engine`: continuous batching of requests with different prefixes on a Transformers model."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from weakref import ref

from torch import Tensor

from foreword.core import KVPrefix, Pooling
from foreword.core.token_rows import check_token_ids
from foreword.engine import scoring
from foreword.engine.base import EngineBase
from foreword.engine.cache import MAX_PAGED_PREFIX, PAGE_SIZE, PagedCache
from foreword.engine.decoder_cache import DecoderCache
from foreword.engine.device_cache import DeviceCache
from foreword.engine.encoder_decoder_runner import EncoderDecoderRunner
from foreword.engine.job import Job
from foreword.engine.model_runner import ModelRunner
from foreword.engine.protocol import ANONYMOUS, Request, Sender, TokenLogprob
from foreword.engine.request_validator import RequestValidator
from foreword.engine.scheduler import SHARED_TOKENS, ScheduledTokens, Scheduler
from foreword.engine.sequence import Sequence
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler, sample_batch
from foreword.errors import RequestError, UnsupportedModel, UsageError
from foreword.models import LanguageModel
from foreword.models.activations import activations, check_context_length
from foreword.models.cached_model import CachedModel
from foreword.models.encoder_decoder import NO_CACHE, EncoderDecoder
from foreword.openmp import release_openmp_threads
from foreword.text.detokenize import Detokenizer
from foreword.text.label_scorers import LabelScorer
from foreword.text.prompt import Prompt

CHUNK = 64
"""Tokens of a prompt that a deterministic engine runs at a time: enough to read the weights once for many."""


class Engine(EngineBase):
    """The embedded engine: generates and scores with prefixes; see `EngineBase` for its threads.

    Close it, or use it as a context manager: its thread holds the model.

    Args:
        lm: a causal model, an encoder-decoder, or an encoder, which scores and does not generate.
        cache_bytes: bound of the requests' own keys and values, in bytes; memory is touched as it is used.
        max_batch: sequences a step at most.
        step_tokens: tokens a step at most.
        max_waiting: requests that may wait; more are refused at once.
        reuse: prefix caching: tokens that another request ran behind the same prefix are not run again.
        deterministic: the same tokens and log-probabilities alone and in any batch, bit by bit, whatever is cached:
            every sequence has forwards of its own, and prompts run in chunks of `CHUNK` tokens.
        max_model_len: positions a request may take, prefix and answer included; the model's context by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.
        start: step in a thread of its own; without it, the caller calls `step`.

    Raises:
        UsageError: deterministic steps without room for a chunk beside ``max_batch`` sequences.
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
        deterministic: bool = False,
        max_model_len: int | None = None,
        allow_other_weights: bool = False,
        start: bool = True,
    ) -> None:
        context = min((n for n in (lm.context, max_model_len) if n is not None), default=None)
        self.dtype = lm.dtype
        chunk = CHUNK if deterministic and not lm.is_encoder_decoder else None
        if chunk is not None and step_tokens < max_batch + chunk:
            raise UsageError(f"deterministic steps need step_tokens {max_batch + chunk} or more, got {step_tokens}.")
        if isinstance(lm, EncoderDecoder):
            self.cache = DecoderCache(
                max(1, cache_bytes // DecoderCache.bytes_per_position(lm.identity.decoder_only.layers, lm.dtype))
            )
            self._runner = EncoderDecoderRunner(lm, self.cache, apart=deterministic)
            # One position is the decoder's start token; a prefix stands in front of the text and of the answer.
            positions, prefix_positions = self.cache.num_positions - 1, lambda length: 2 * length
        else:
            num_pages = max(1, cache_bytes // PagedCache.bytes_per_page(lm.identity.layers, lm.dtype))
            self.cache = cache = PagedCache(
                lm.identity.layers,
                num_pages,
                lm.dtype,
                lm.device,
                # A page of tokens is of no use without the states at its end, which are not kept.
                reuse=reuse and not lm.identity.keeps_states,
                chunk=chunk,
                max_paged_prefix=None if isinstance(lm, CachedModel) else MAX_PAGED_PREFIX,
            )
            self._runner = ModelRunner(lm, cache, apart=deterministic)
            positions, prefix_positions = num_pages * PAGE_SIZE, cache.positions_for_prefix

        super().__init__(
            name=lm.name,
            tokenizer=lm.tokenizer,
            identity=lm.identity,
            causal=lm.causal,
            is_encoder_decoder=lm.is_encoder_decoder,
            eos_token_ids=lm.eos_token_ids,
            validator=RequestValidator(
                identity=lm.identity,
                context=context,
                cache_positions=positions,
                allow_other_weights=allow_other_weights,
                prefix_cache_positions=prefix_positions,
                tokenizer=lm.tokenizer,
                is_encoder_decoder=lm.is_encoder_decoder,
            ),
            scheduler=Scheduler(
                self.cache,
                step_tokens,
                max_batch,
                chunk,
                whole_prompts=lm.is_encoder_decoder,
                # Elsewhere a step takes about as long with few tokens as with many, and answers that pause are copied.
                max_num_shared_tokens=SHARED_TOKENS if lm.device.type == "cpu" and not lm.is_encoder_decoder else None,
            ),
            cache=self.cache,
            max_waiting=max_waiting,
        )
        self._lm, self._step_tokens = lm, step_tokens
        # A prompt that is longer than a batch of scores is one of its own, so here each is.
        self._scoring_tokens = 1 if deterministic else step_tokens
        self._device_cache = DeviceCache(lm.model, lm.dtype, lm.device)
        if isinstance(self._runner, ModelRunner) and lm.causal:
            self._runner.warm_up()
        if start:
            release_openmp_threads()  # of the thread that loaded the model; from now on another one runs it
            self._thread.start()

    def score(self, prompts: Items[Prompt], scorer: LabelScorer, *, sender: Sender = ANONYMOUS) -> Tensor:
        """See `EngineProtocol.score`. Runs between the steps of generation, in batches of a step's size."""
        for prompt in prompts:
            self._validator.check_prompt(prompt, scorer.max_extra_tokens)
        return self._score(prompts, scoring.label_scores(scorer), sender)

    def token_logprobs(self, prompts: Items[Prompt]) -> list[Tensor]:
        """See `EngineProtocol.token_logprobs`. Runs as `score` does, with the logits of a step's tokens at a time."""
        self._require_answers()
        for prompt in prompts:
            self._validator.check_prompt(prompt, 0)
            if self.is_encoder_decoder and not prompt.output_indices:
                raise RequestError(f"{self.name} is an encoder-decoder; name the place that its decoder begins at.")
        measured = [prompt.for_token_logprobs for prompt in prompts]
        scores = self._score(
            [prompt for prompt in measured if prompt.output_indices], scoring.next_token_logprobs(self._step_tokens)
        )
        return list(scores[:, 0].split([len(prompt.output_indices) for prompt in measured]))

    def prompt_logprobs(self, prompt: Prompt, top: int, *, sender: Sender = ANONYMOUS) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`."""
        if self.is_encoder_decoder:
            raise UnsupportedModel(
                f"{self.name} is an encoder-decoder, which reads a prompt as a whole and so gives its tokens no "
                "log-probabilities; ask for those of its answer (logprobs), and leave echo and prompt_logprobs out."
            )
        self._require_answers()
        self._validator.check_prompt(prompt, 0)
        measured = replace(prompt, output_indices=()).for_token_logprobs
        top = min(top, self.identity.vocab_size)
        if not measured.output_indices:
            return []
        rows = self._score([measured], scoring.next_token_logprobs(self._step_tokens, top), sender).tolist()
        return [
            TokenLogprob(
                measured.token_ids[place + 1],
                row[0],
                tuple(zip(map(int, row[1 : 1 + top]), row[1 + top :], strict=True)),
            )
            for place, row in zip(measured.output_indices, rows, strict=True)
        ]

    def embed(self, prompts: Items[Prompt], pooling: Pooling | None = None, *, sender: Sender = ANONYMOUS) -> Tensor:
        """See `EngineProtocol.embed`. Runs as `score` does."""
        if self.is_encoder_decoder:
            raise UnsupportedModel(f"{self.name} is an encoder-decoder, which embeds nothing here; use an encoder.")
        pooling = pooling or self._lm.pooling
        if pooling is None:
            raise RequestError(
                f"{self.name} was trained with a pooling or a further layer for its embeddings that is not known here; "
                "name the pooling that you want: last, mean or cls."
            )
        for prompt in prompts:
            self._validator.check_prompt(prompt, 0)
        places = [replace(prompt, output_indices=()) for prompt in prompts]
        return self._score(places, scoring.embeddings(pooling, self.identity.head_size), sender)

    def prefill(self, token_ids: Items[int]) -> KVPrefix:
        """See `EngineProtocol.prefill`. Runs between the steps of generation, a step's tokens at a time."""
        if not self.causal:
            kind = "an encoder-decoder" if self.is_encoder_decoder else "an encoder"
            raise UnsupportedModel(f"{self.name} is {kind}, whose text sees the request too; learn a prefix.")
        check_context_length(self.name, self.context, len(token_ids), None)
        check_token_ids(self.tokenizer, self.identity.vocab_size, token_ids)
        prefix: KVPrefix | None = None
        for first in range(0, len(token_ids), self._step_tokens):
            chunk = token_ids[first : first + self._step_tokens]
            (prefix,) = self._run_jobs([Job(partial(activations, self._lm, chunk, prefix))])
        assert prefix is not None
        return prefix

    def check(self, request: Request) -> None:
        """See `EngineBase.check`."""
        if not self.causal and not self.is_encoder_decoder:
            raise UnsupportedModel(f"{self.name} is an encoder, which writes no text; classify or tag with it.")
        if isinstance(self._lm, EncoderDecoder) and not self._lm.caches:
            raise UnsupportedModel(f"{self.name} ({self.identity.architecture}) {NO_CACHE}")
        super().check(request)

    def statistics(self) -> dict[str, float]:
        """Those of `EngineBase.statistics` and of the cache, and ``tokens_reused``: prompt tokens that were in the
        cache already."""
        return {
            **super().statistics(),
            "tokens_reused": self.scheduler.num_cached_tokens,
            **self.cache.statistics(),
        }

    def close(self) -> None:
        """Stop stepping and free the cache; unfinished requests end as cancelled."""
        super().close()
        self.cache.close()

    def _make_sequence(
        self, request: Request, sampler: TokenSampler, detokenizer: Detokenizer, stream: ref[ChunkStream]
    ) -> Sequence:
        return Sequence(
            request,
            self._device_cache.prefix(request.prefix, request.prefix_length),
            sampler,
            detokenizer,
            stream,
            self._device_cache.soft(request.soft),
            self._device_cache.adapter(request.adapter),
            self._device_cache.root_hash(request),
        )

    def _execute_model(self, scheduled: list[ScheduledTokens]) -> list[int | None]:
        logits = self._runner.run(scheduled)
        return sample_batch(logits, [each.sequence.sampler for each in scheduled if each.needs_logits])

    def _score(self, prompts: Items[Prompt], spec: scoring.ScoringSpec, sender: Sender = ANONYMOUS) -> Tensor:
        batches = scoring.make_batches(self._lm, prompts, spec, self._device_cache, self._scoring_tokens)
        results = self._run_jobs([batch.job for batch in batches], sender)
        return scoring.gather_scores(batches, results, prompts, spec.columns)

    def _require_answers(self) -> None:
        if not self.causal and not self.is_encoder_decoder:
            raise UnsupportedModel(f"{self.name} is an encoder, which sees what follows; ask a causal model.")
