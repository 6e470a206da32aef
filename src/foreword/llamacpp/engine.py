"""`LlamaCppEngine`: llama.cpp as an `EngineProtocol`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet, ref

import numpy as np

from foreword.core import Adapter, KVPrefix, Pooling
from foreword.engine.base import EngineBase
from foreword.engine.job import Job
from foreword.engine.protocol import ANONYMOUS, Request, Sender, TokenLogprob
from foreword.engine.request_validator import RequestValidator
from foreword.engine.scheduler import SHARED_TOKENS, ScheduledTokens, Scheduler
from foreword.engine.sequence import Sequence as EngineSequence
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler, sample_row
from foreword.errors import EngineError, PromptTooLong, RequestError, UnsupportedModel
from foreword.llamacpp.cell_allocator import CellAllocator, check_range
from foreword.llamacpp.compat import MAX_SEQUENCES
from foreword.llamacpp.decode import SequenceTokens, decode
from foreword.llamacpp.model import GgufModel
from foreword.llamacpp.preflight import preflight
from foreword.llamacpp.scoring import LabelScoring, PromptScoring, make_batches
from foreword.llamacpp.session_loader import open_session
from foreword.text.detokenize import Detokenizer
from foreword.text.label_scorers import LabelScorer, WordScorer
from foreword.text.prompt import Prompt

CELLS = 8192
"""Default positions of the cache: fewer for a model with a shorter context, more for a longer ``max_model_len``."""


class LlamaCppEngine(EngineBase):
    """Generates and scores with prefixes on a model in a GGUF file.

    Close the engine, or use it as a context manager: its thread holds the model.

    Args:
        model: the model.
        cells: positions of the cache, over all requests and the prefixes in use; memory is allocated at once.
        max_batch: sequences a step at most.
        step_tokens: tokens a step at most.
        max_waiting: requests that may wait; more are refused at once.
        max_model_len: positions a request may take, prefix and answer included; what fits into the cache by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.
        start: step in a thread of its own; without it, the caller calls `step`.

    Raises:
        UsageError: llama.cpp is not installed, or not in a supported version.
        UnsupportedModel: the model cannot take prefixes here; the message says why.
        EngineError: llama.cpp could not load the model, the preflight check failed, or its sequence states have another
            format.
    """

    def __init__(
        self,
        model: GgufModel,
        *,
        cells: int | None = None,
        max_batch: int = 64,
        step_tokens: int = 512,
        max_waiting: int = 4096,
        max_model_len: int | None = None,
        allow_other_weights: bool = False,
        start: bool = True,
    ) -> None:
        preflight(model)
        cells = cells or max(min(CELLS, model.context), max_model_len or 0)
        self._session, self.key_layout = open_session(
            model, num_cells=cells, batch_size=step_tokens, max_outputs=min(max_batch, step_tokens)
        )
        session = self._session
        context = min(model.context, max_model_len or model.context, session.num_cells)
        self.allocator = CellAllocator(session, self.key_layout)
        super().__init__(
            name=model.name,
            tokenizer=model.tokenizer,
            identity=model.identity,
            causal=True,
            is_encoder_decoder=False,
            eos_token_ids=model.eos_token_ids,
            validator=RequestValidator(
                model.identity, context, session.num_cells, allow_other_weights, tokenizer=model.tokenizer
            ),
            scheduler=Scheduler(self.allocator, step_tokens, max_batch, max_num_shared_tokens=SHARED_TOKENS),
            cache=self.allocator,
            max_waiting=max_waiting,
        )
        self._in_range: WeakSet[KVPrefix] = WeakSet()
        if start:
            self._thread.start()

    def check(self, request: Request) -> None:
        """See `EngineBase.check`."""
        super().check(request)
        self._check_parts(request.prefix, request.prefix_length, request.adapter)
        self._check_cells(request, request.max_cached_tokens)

    def score(self, prompts: Sequence[Prompt], scorer: LabelScorer, *, sender: Sender = ANONYMOUS) -> np.ndarray:
        """See `EngineProtocol.score`. Runs between the steps of generation, in batches of a step's size.

        Raises UnsupportedModel for a head: only logits are read here, not hidden states.
        """
        if not isinstance(scorer, WordScorer):
            raise UnsupportedModel("heads are not read on llama.cpp; serve this task with --engine embedded.")
        num_inner = len(scorer.trie.inner_nodes)
        for prompt in prompts:
            self._check_prompt(prompt, scorer.max_extra_tokens, num_inner)
        max_sequences = (MAX_SEQUENCES - self.scheduler.max_num_seqs) // 2
        if 1 + num_inner > max_sequences:
            raise RequestError(
                f"the words of this task branch at {num_inner} places, and llama.cpp tells {max_sequences - 1} apart; "
                "use shorter words, or --engine embedded."
            )
        batches = list(
            make_batches(
                scorer.trie,
                [_with_float32_soft(prompt) for prompt in prompts],
                max_tokens=self._session.batch_size,
                max_cells=self._session.num_cells,
                max_sequences=max_sequences,
            )
        )
        jobs = [self._scoring_job(batch, len(indices)) for indices, batch in batches]
        scores = np.empty((len(prompts), scorer.num_labels), np.float32)
        for (indices, _), result in zip(batches, self._run_jobs(jobs, sender), strict=True):
            scores[indices] = result
        return scores

    def token_logprobs(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """See `EngineProtocol.token_logprobs`. Runs as `score` does, a prompt at a time."""
        return [np.array([each.logprob for each in found], np.float32) for found in self._prompt_logprobs(prompts, 0)]

    def prompt_logprobs(self, prompt: Prompt, top: int, *, sender: Sender = ANONYMOUS) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`."""
        top = min(top, self.identity.vocab_size)
        return self._prompt_logprobs([replace(prompt, output_indices=())], top, sender)[0]

    def embed(
        self, prompts: Sequence[Prompt], pooling: Pooling | None = None, *, sender: Sender = ANONYMOUS
    ) -> np.ndarray:
        """Raises UnsupportedModel: only logits are read here, not hidden states."""
        raise UnsupportedModel("hidden states are not read on llama.cpp; embed with --engine embedded.")

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Raises UnsupportedModel: a quantized model computes other keys and values than the bank's other engines."""
        raise UnsupportedModel(
            "the llama.cpp engine computes no prefix; run `foreword publish` or `foreword cache` beside the server, "
            "which sees what is published at once."
        )

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, ``cells``, ``free_cells``, ``prefixes_written``, and counters since the start."""
        return {
            **super().statistics(),
            "cells": self._session.num_cells,
            "free_cells": self.allocator.num_free,
            "prefixes_written": self.allocator.num_prefixes_written,
        }

    def close(self) -> None:
        """Stop stepping, and free the model; unfinished requests end as cancelled."""
        if not self._closed:
            super().close()
            self._session.close()

    def _make_sequence(
        self, request: Request, sampler: TokenSampler, detokenizer: Detokenizer, stream: ref[ChunkStream]
    ) -> EngineSequence:
        return EngineSequence(request, request.prefix, sampler, detokenizer, stream, _as_float32(request.soft))

    def _execute_model(self, scheduled: list[ScheduledTokens]) -> list[int | None]:
        found: dict[int, np.ndarray] = {}

        def on_logits(index: int, token_index: int, logits: np.ndarray) -> None:
            found[index] = logits.copy()

        decode(self._session, [self._sequence_tokens(each) for each in scheduled], on_logits)
        # Behind the whole step: one that fails is run again, and a sampler must not see a token twice.
        needed = [(found[index], each) for index, each in enumerate(scheduled) if each.needs_logits]
        return [sample_row(logits, each.sequence.sampler) for logits, each in needed]

    def _sequence_tokens(self, tokens: ScheduledTokens) -> SequenceTokens:
        sequence = tokens.sequence
        output_indices = (tokens.num_tokens - 1,) if tokens.needs_logits else ()
        start = sequence.request.prefix_length + tokens.start
        token_ids = sequence.token_ids(tokens.start, tokens.end)
        soft: Any = sequence.soft  # a numpy array, see `_make_sequence`
        return SequenceTokens(self.allocator.seq_id(sequence), start, token_ids, soft, output_indices)

    def _prompt_logprobs(
        self, prompts: Sequence[Prompt], top: int, sender: Sender = ANONYMOUS
    ) -> list[list[TokenLogprob]]:
        """Log-probabilities of the token behind each output of every prompt."""
        for prompt in prompts:
            self._check_prompt(prompt, 0, 0)
        scorings = [PromptScoring(_with_float32_soft(prompt.for_token_logprobs), top) for prompt in prompts]
        # Nothing of a prompt of one token is predicted.
        jobs = {
            index: self._scoring_job(scoring, 0)
            for index, scoring in enumerate(scorings)
            if scoring.prompt.output_indices
        }
        results = dict(zip(jobs, self._run_jobs(list(jobs.values()), sender), strict=True))
        return [results.get(index, []) for index in range(len(scorings))]

    def _scoring_job(self, scoring: LabelScoring | PromptScoring, num_scored: int) -> Job[Any]:
        """A job that runs when the cache has room for it; until then no sequence is admitted."""

        def has_room() -> bool:
            fits = self.allocator.make_room(scoring.requirements, scoring.num_sequences)
            self.allocator.admission_paused = not fits
            if not fits and not self.scheduler.running:
                raise EngineError("the cache is empty, and has no room for what is to be scored.")
            return fits

        return Job(partial(scoring.run, self._session, self.allocator), num_scored, has_room)

    def _check_prompt(self, prompt: Prompt, longest: int, num_inner: int) -> None:
        self._validator.check_prompt(prompt, longest)
        self._check_parts(prompt.prefix, prompt.prefix_length, prompt.adapter)
        self._check_cells(prompt, len(prompt.token_ids) + num_inner)

    def _check_cells(self, request: Request | Prompt, num_cells: int) -> None:
        """Raise PromptTooLong if the cache cannot hold so many cells and the whole prefix."""
        needed = num_cells
        if request.prefix is not None and request.prefix_length:
            needed += request.prefix.length
        if needed > self._session.num_cells:
            raise PromptTooLong(
                f"the request and its whole prefix need {needed} positions of the cache, which has "
                f"{self._session.num_cells}; shorten it, or serve with a larger --max-model-len."
            )

    def _check_parts(self, prefix: KVPrefix | None, length: int, adapter: Adapter | None) -> None:
        if adapter is not None:
            raise RequestError(
                "this task changes the model's layers (LoRA), which llama.cpp does for all requests of a batch or "
                "none; serve it with --engine embedded or vllm."
            )
        if prefix is not None and length and prefix not in self._in_range:
            check_range(prefix, self._session.dtype)
            self._in_range.add(prefix)


def _with_float32_soft(prompt: Prompt) -> Prompt:
    return replace(prompt, soft=_as_float32(prompt.soft))


def _as_float32(soft: Any) -> Any:
    """Soft tokens, read by numpy or by PyTorch, as a float32 numpy array; ``None`` as it is."""
    if soft is None:
        return None
    return soft.astype(np.float32) if isinstance(soft, np.ndarray) else soft.detach().float().cpu().numpy()
