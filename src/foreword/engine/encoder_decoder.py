"""`EncoderDecoderEngine`: scores and greedy answers of an encoder-decoder, for evaluation; nothing serves one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from foreword.core import Batch, Front, KVPrefix, Pooling, SamplingParams
from foreword.engine import scoring
from foreword.engine.device_cache import DeviceCache
from foreword.engine.encoder_decoder_stream import EncoderDecoderStream
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request, TokenLogprob
from foreword.engine.request_validator import RequestValidator
from foreword.errors import EngineError, RequestError, UnsupportedModel, UnsupportedOption
from foreword.models import LanguageModel
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.text.detokenize import Detokenizer
from foreword.text.label_scorers import LabelScorer
from foreword.text.prompt import Prompt

UNSUPPORTED_PARAMS = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "logprobs",
    "constraint",
)

BATCH_TOKENS = 4096
"""Padded tokens of the texts in one batch."""


def evaluation_engine(
    lm: LanguageModel, *, cache_bytes: int = 1 << 30, allow_other_weights: bool = False, reuse: bool = True
) -> Engine | EncoderDecoderEngine:
    """The engine for evaluating a model: an `EncoderDecoderEngine` for an encoder-decoder, else the one that serves it.

    Args:
        reuse: see `Engine`; not for a model whose weights change meanwhile.
    """
    if isinstance(lm, EncoderDecoder):
        return EncoderDecoderEngine(lm, allow_other_weights=allow_other_weights)
    return Engine(lm, cache_bytes=cache_bytes, allow_other_weights=allow_other_weights, reuse=reuse)


class EncoderDecoderEngine:
    """An engine without a thread: it scores labels and generates greedily in the thread that calls it.

    Args:
        lm: an encoder-decoder.
        allow_other_weights: take tasks made for other weights of the same architecture.
    """

    def __init__(self, lm: EncoderDecoder, *, allow_other_weights: bool = False) -> None:
        self.name, self.tokenizer, self.identity, self.context = lm.name, lm.tokenizer, lm.identity, lm.context
        self.causal, self.is_encoder_decoder, self.loads_prefixes, self.alive = False, True, False, True
        self._lm = lm
        self._device_cache = DeviceCache(lm.model, lm.dtype, lm.device)
        self._validator = RequestValidator(
            lm.identity, lm.context, sys.maxsize, allow_other_weights, tokenizer=lm.tokenizer
        )
        self._waiting: list[EncoderDecoderStream] = []
        self._counters = dict.fromkeys(("requests", "tokens_generated", "scored"), 0)

    def submit(self, request: Request) -> EncoderDecoderStream:
        """Keep a request until its stream is read.

        Raises UnsupportedOption for a temperature above 0 and for `UNSUPPORTED_PARAMS`.
        """
        self._check_open()
        self._validator.check(request)
        if request.sampling.temperature:
            raise UnsupportedOption(
                f"{self.name} is an encoder-decoder, which answers greedily; leave temperature at 0."
            )
        defaults = SamplingParams()
        for name in UNSUPPORTED_PARAMS:
            if getattr(request.sampling, name) != getattr(defaults, name):
                raise UnsupportedOption(f"{self.name} is an encoder-decoder, which takes no {name}; leave it out.")
        detokenizer = Detokenizer(
            self.tokenizer,
            request.sampling.stop,
            skip_special_tokens=request.sampling.skip_special_tokens,
            include_stop=request.sampling.include_stop_str_in_output,
        )
        lm = self._lm
        stream = EncoderDecoderStream(request, detokenizer, lm.eos_token_ids, self._generate_waiting, lm.dtype)
        self._waiting.append(stream)
        self._counters["requests"] += 1
        return stream

    def score(self, prompts: Sequence[Prompt], scorer: LabelScorer) -> Tensor:
        """See `EngineProtocol.score`."""
        self._check_open()
        for prompt in prompts:
            self._validator.check_prompt(prompt, scorer.max_extra_tokens)
        return self._score(prompts, scoring.label_scores(scorer))

    def token_logprobs(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """See `EngineProtocol.token_logprobs`. The decoder begins at a prompt's first place, so places must
        be given."""
        self._check_open()
        for prompt in prompts:
            self._validator.check_prompt(prompt, 0)
            if not prompt.output_indices:
                raise RequestError(f"{self.name} is an encoder-decoder; name the place that its decoder begins at.")
        measured = [prompt.for_token_logprobs for prompt in prompts]
        scores = self._score(measured, scoring.next_token_logprobs(BATCH_TOKENS))
        return list(scores[:, 0].split([len(prompt.output_indices) for prompt in measured]))

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """Raises UnsupportedModel: the prompt of an encoder-decoder is read as a whole."""
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, which reads its prompt as a whole.")

    def embed(self, prompts: Sequence[Prompt], pooling: Pooling | None = None) -> Tensor:
        """Raises UnsupportedModel: the hidden states of an encoder-decoder are not read."""
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, which embeds nothing here; use an encoder.")

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Raises UnsupportedModel: an encoder-decoder takes soft tokens alone."""
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, which takes no text in front; learn a soft prompt.")

    def statistics(self) -> dict[str, float]:
        """Counters since the start, and how many requests are ``waiting``."""
        return {**self._counters, "waiting": len(self._waiting)}

    def close(self) -> None:
        """Cancel the answers that were not read."""
        self.alive = False
        for stream in self._waiting:
            stream.cancel()
        self._waiting.clear()

    def __enter__(self) -> EncoderDecoderEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(self, prompts: Sequence[Prompt], spec: scoring.ScoringSpec) -> Tensor:
        batches = scoring.make_batches(self._lm, prompts, spec, self._device_cache, BATCH_TOKENS)
        for batch in batches:
            batch.job.run()
        self._counters["scored"] += len(prompts)
        results = [batch.job.result() for batch in batches]
        return scoring.gather_scores(batches, results, prompts, spec.columns)

    def _check_open(self) -> None:
        if not self.alive:
            raise EngineError("the engine is closed; start it again.")

    def _generate_waiting(self) -> None:
        """Generate all waiting answers, those with the same soft prompt and similar lengths in one batch."""
        waiting = [stream for stream in self._waiting if not stream.ended]
        self._waiting.clear()
        waiting.sort(key=lambda stream: (_soft_key(stream), len(stream.request.token_ids)))
        for _, streams in groupby(waiting, _soft_key):
            for batch in _split_batches(list(streams)):
                self._generate(batch)

    def _generate(self, streams: list[EncoderDecoderStream]) -> None:
        front = Front(inner_soft=self._device_cache.soft(streams[0].request.soft))
        batch = Batch.from_rows(front, [stream.request.token_ids for stream in streams], device=self._lm.device)

        def choose(logits: Tensor) -> list[int] | None:
            largest, tokens = logits.max(-1)  # the maximum of a row with a NaN is NaN
            for stream, token, good in zip(streams, tokens.tolist(), largest.isfinite().tolist(), strict=True):
                stream.append_token(token if good else None)
            return None if all(stream.ended for stream in streams) else tokens.tolist()

        self._lm.decode(batch, choose)
        self._counters["tokens_generated"] += sum(len(stream.token_ids) for stream in streams)


def _soft_key(stream: EncoderDecoderStream) -> int:
    """Equal for requests with the same soft prompt."""
    soft = stream.request.soft
    return soft.data_ptr() if soft is not None else 0  # slices of one task's soft tokens are one


def _split_batches(streams: list[EncoderDecoderStream]) -> Iterator[list[EncoderDecoderStream]]:
    """Streams sorted by length, in batches of at most `BATCH_TOKENS` padded tokens."""
    batch: list[EncoderDecoderStream] = []
    for stream in streams:
        if batch and (len(batch) + 1) * len(stream.request.token_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(stream)
    if batch:
        yield batch
