"""`LlamaCppEngine`: llama.cpp behind the protocol that server, evaluation and benchmarks know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet, ref

import numpy as np

from foreword.core import Adapter, KVPrefix
from foreword.engine.base import EngineBase
from foreword.engine.job import Job
from foreword.engine.protocol import Request, TokenLogprob
from foreword.engine.request_validator import RequestValidator
from foreword.engine.scheduler import ScheduledTokens, Scheduler
from foreword.engine.sequence import Sequence as Answer
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler, sample_row
from foreword.errors import EngineError, PromptTooLong, RequestError, UnsupportedModel
from foreword.llamacpp.cell_allocator import CellAllocator, check_range
from foreword.llamacpp.compat import SEQUENCES, Session
from foreword.llamacpp.decode import DecodeRun, run
from foreword.llamacpp.key_layout import KeyLayout
from foreword.llamacpp.model import GgufModel
from foreword.llamacpp.preflight import preflight
from foreword.llamacpp.scorer import PromptScoring, pieces
from foreword.text.detokenize import Detokenizer
from foreword.text.label_scorers import LabelScorer, WordScorer
from foreword.text.request import Prompt

CELLS = 8192
"""Positions of the cache, unless the model's context or ``max_model_len`` says otherwise."""


class LlamaCppEngine(EngineBase):
    """Generates and scores with prefixes on a model in a GGUF file.

    Close the engine, or use it as a context manager: its thread holds the model.

    Args:
        model: the file.
        cells: positions of the cache, over all requests and the prefixes that are in use; memory is taken at once.
        max_batch: sequences a step at most.
        step_tokens: tokens a step at most.
        max_waiting: requests that may wait; more are refused at once.
        max_model_len: positions a request may take, prefix and answer included; what fits into the cache by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.
        start: step in a thread of its own; without it, somebody has to call `step`.

    Raises:
        UsageError: llama.cpp is not installed, or in a version that is not known here.
        UnsupportedModel: prefixes cannot stand in front of this model here; the sentence says why.
        EngineError: llama.cpp could not load the model, died of a prompt in a child process, or its states are not as
            they are known here.
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
        self._session = session = Session(
            model.file, dtype=model.dtype, cells=cells, rows=step_tokens, outputs=min(max_batch, step_tokens)
        )
        try:
            self.order = _proved(model, session)
        except BaseException:
            session.close()
            raise
        context = min(model.context, max_model_len or model.context, session.cells)
        self.cells = CellAllocator(session, self.order)
        super().__init__(
            name=model.name,
            tokenizer=model.tokenizer,
            identity=model.identity,
            causal=True,
            is_encoder_decoder=False,
            eos_token_ids=model.end_ids,
            validator=RequestValidator(model.identity, context, session.cells, allow_other_weights),
            scheduler=Scheduler(self.cells, step_tokens, max_batch),
            cache=self.cells,
            max_waiting=max_waiting,
        )
        self._in_range: WeakSet[KVPrefix] = WeakSet()
        if start:
            self._thread.start()

    def check(self, request: Request) -> None:
        """See `EngineBase.check`."""
        super().check(request)
        self._check_parts(request.prefix, request.prefix_length, request.adapter)
        whole = request.prefix.length if request.prefix is not None and request.prefix_length else 0
        self._check_cells(whole + request.max_cached_tokens)

    def score(self, prompts: Sequence[Prompt], scorer: LabelScorer) -> np.ndarray:
        """See `EngineProtocol.score`. Runs between the steps of generation, in pieces of a step's size.

        Raises UnsupportedModel for a head: what is read here are logits, not hidden states.
        """
        if not isinstance(scorer, WordScorer):
            raise UnsupportedModel("heads are not read on llama.cpp; serve this task with --engine embedded.")
        inner = len(scorer.trie.inner)
        for prompt in prompts:
            self._check_prompt(prompt, scorer.longest, inner)
        softs = [_floats(prompt.soft) for prompt in prompts]
        numbers = (SEQUENCES - self.scheduler.max_num_seqs) // 2
        if 1 + inner > numbers:
            raise RequestError(
                f"the words of this task branch at {inner} places, and llama.cpp tells {numbers - 1} apart; use "
                "shorter words, or --engine embedded."
            )
        parts = list(pieces(scorer.trie, prompts, softs, self._session.rows, self._session.cells, numbers))
        jobs = [
            Job(partial(part.scores, self._session, self.cells), len(places), self._when(part.wanted, part.numbers))
            for places, part in parts
        ]
        scores = np.empty((len(prompts), scorer.labels), np.float32)
        for (places, _), found in zip(parts, self._run_jobs(jobs), strict=True):
            scores[places] = found
        return scores

    def token_logprobs(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """See `EngineProtocol.token_logprobs`. Runs as `score` does, a prompt at a time."""
        return [np.array([each.logprob for each in found], np.float32) for found in self._read(prompts, 0)]

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`."""
        return self._read([replace(prompt, places=())], min(top, self.identity.vocab_size))[0]

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Refused: what a quantized model computes is not what the bank's other engines would. Raises
        UnsupportedModel."""
        raise UnsupportedModel(
            "the llama.cpp engine computes no prefix; run `foreword publish` or `foreword cache` beside the server, "
            "which sees what is published at once."
        )

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, ``cells``, ``free_cells``, ``prefixes_written``, and counters since the start."""
        own = {"cells": self._session.cells, "free_cells": self.cells.num_free, "prefixes_written": self.cells.injected}
        return {**super().statistics(), **own}

    def close(self) -> None:
        """Stop stepping, and free the model; unfinished requests end as cancelled."""
        if not self._closed:
            super().close()
            self._session.close()

    def _make_sequence(
        self, request: Request, sampler: TokenSampler, detokenizer: Detokenizer, stream: ref[ChunkStream]
    ) -> Answer:
        return Answer(request, request.prefix, sampler, detokenizer, stream, _floats(request.soft))

    def _execute_model(self, scheduled: list[ScheduledTokens]) -> list[int | None]:
        chosen: dict[int, int | None] = {}

        def read(number: int, place: int, row: np.ndarray) -> None:
            chosen[number] = sample_row(row, scheduled[number].sequence.sampler)

        run(self._session, [self._as_run(each) for each in scheduled], read)
        return [chosen[number] for number, each in enumerate(scheduled) if each.needs_logits]

    def _as_run(self, tokens: ScheduledTokens) -> DecodeRun:
        sequence = tokens.sequence
        wanted = {tokens.num_tokens - 1} if tokens.needs_logits else frozenset[int]()
        start = sequence.request.prefix_length + tokens.start
        ids = sequence.token_ids(tokens.start, tokens.end)
        soft: Any = sequence.soft  # as `_floats` made it
        return DecodeRun(self.cells.number(sequence), start, ids, soft, wanted)

    def _read(self, prompts: Sequence[Prompt], top: int) -> list[list[TokenLogprob]]:
        for prompt in prompts:
            self._check_prompt(prompt, 0, 0)
        asked = [PromptScoring(prompt.measured, _floats(prompt.soft), top) for prompt in prompts]
        # A prompt of one token has nothing that is predicted.
        jobs = {
            number: Job(partial(each.logprobs, self._session, self.cells), 0, self._when(each.wanted, 1))
            for number, each in enumerate(asked)
            if each.prompt.places
        }
        found = dict(zip(jobs, self._run_jobs(list(jobs.values())), strict=True))
        return [found.get(number, []) for number in range(len(asked))]

    def _when(self, wanted: Sequence[tuple[int, KVPrefix | None]], numbers: int) -> Callable[[], bool]:
        """Whether there is room; until there is, nothing else is admitted."""

        def ready() -> bool:
            fits = self.cells.room_for(wanted, numbers)
            self.cells.held_back = not fits
            if not fits and not self.scheduler.running:
                raise EngineError("the cache is empty, and has no room for what is to be scored.")
            return fits

        return ready

    def _check_prompt(self, prompt: Prompt, longest: int, inner: int) -> None:
        self._validator.check_prompt(prompt, longest)
        self._check_parts(prompt.prefix, prompt.prefix_length, prompt.adapter)
        whole = prompt.prefix.length if prompt.prefix is not None and prompt.prefix_length else 0
        self._check_cells(whole + len(prompt.token_ids) + inner)

    def _check_cells(self, needed: int) -> None:
        if needed > self._session.cells:
            raise PromptTooLong(
                f"the request and its whole prefix need {needed} positions of the cache, which has "
                f"{self._session.cells}; shorten it, or serve with a larger --max-model-len."
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


def _proved(model: GgufModel, session: Session) -> KeyLayout:
    """How keys lie in the cache. Raises UnsupportedModel, EngineError."""
    found, said = (session.vocab_size, session.hidden_size), (model.identity.vocab_size, model.identity.hidden_size)
    if found != said:
        raise UnsupportedModel(
            f"llama.cpp reads {model.file.name} with {found} tokens and width, its file says {said}."
        )
    order = KeyLayout(model.identity.layers, model.rotary, model.theta, session.interleaved)
    order.prove(session, token=model.identity.vocab_size // 2, last=session.cells - 1)
    return order


def _floats(soft: Any) -> Any:
    """Soft tokens as a numpy array in float32, also those that PyTorch read; or ``None``."""
    if soft is None:
        return None
    return soft.astype(np.float32) if isinstance(soft, np.ndarray) else soft.detach().float().cpu().numpy()
