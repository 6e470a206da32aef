"""`VllmEngine`: vLLM as an `EngineProtocol`."""

from __future__ import annotations

import asyncio
import atexit
import threading
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar
from weakref import ref

import torch

from foreword.core import KVPrefix, Pooling
from foreword.engine.protocol import ANONYMOUS, Chunk, Request, Sender, TokenLogprob
from foreword.engine.request_validator import RequestValidator
from foreword.engine.stream import ChunkStream
from foreword.errors import EngineBusy, EngineError, RequestError, UnsupportedModel, UsageError
from foreword.models.model_info import ModelInfo
from foreword.text.label_scorers import LabelScorer
from foreword.text.prompt import Prompt
from foreword.vllm import compat, conversion
from foreword.vllm.lora_folders import LoRAFolders
from foreword.vllm.prompt_builder import PrefixedPrompt, PromptBuilder
from foreword.vllm.scoring import Scoring, word_scorer

T = TypeVar("T")
COUNTERS = ("requests", "tokens_run", "tokens_generated", "cancelled", "failed", "scored", "preempted", "tokens_reused")


class VllmEngine:
    """Generates and scores with prefixes of a bank, on vLLM.

    vLLM runs in processes of its own; a thread of this one runs the event loop that talks to them. Close the engine, or
    use it as a context manager: those processes end with it.

    Args:
        model: the base model.
        bank: where the workers read prefixes, as `Bank` takes it.
        flags: of ``vllm serve``.
        prefix_bytes: bound of the prefixes that a worker keeps in memory.
        max_waiting: unfinished requests at most; more are refused at once.
        max_model_len: positions a request may take, prefix and answer included; the model's context by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.

    Raises:
        UsageError: flags that vLLM does not take.
        EngineError: vLLM did not start; its own log says why.
    """

    def __init__(
        self,
        model: ModelInfo,
        bank: str,
        *,
        flags: Sequence[str] = (),
        prefix_bytes: int = 1 << 30,
        max_waiting: int = 4096,
        max_model_len: int | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        self.name, self.tokenizer, self.identity = model.name, model.tokenizer, model.identity
        self.causal, self.is_encoder_decoder, self.loads_prefixes = True, False, True
        self._max_waiting = max_waiting
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._gauges: dict[str, float] = {"waiting": 0, "running": 0, "cache_usage": 0.0}
        self._num_active = 0
        self._lock = threading.Lock()
        length = [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
        serve_args = compat.serve_args(str(model.folder), bank, prefix_bytes, [*length, *flags])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="foreword-vllm", daemon=True)
        self._thread.start()
        self._exit_stack = ExitStack()
        self._exit_stack.callback(self._stop_loop)
        try:
            self._llm = self._run(compat.start_engine(serve_args, self._record_stats))
        except (UsageError, UnsupportedModel):
            self._exit_stack.close()
            raise
        except Exception as error:
            self._exit_stack.close()
            raise EngineError(f"vLLM did not start ({error}); what it printed says why.") from error
        self._exit_stack.callback(lambda: self._run(compat.shut_down(self._llm)))
        self._closed = False
        atexit.register(self.close)
        config = self._llm.vllm_config
        self.context: int | None = config.model_config.max_model_len
        soft_dtype = config.model_config.dtype if config.model_config.enable_prompt_embeds else None
        self._validator = RequestValidator(
            self.identity,
            self.context,
            config.model_config.max_model_len,
            allow_other_weights,
            tokenizer=self.tokenizer,
        )
        try:
            self._prompt_builder = PromptBuilder(self.tokenizer, config.kv_transfer_config.engine_id, soft_dtype)
            self._lora_folders = LoRAFolders(model, config)
        except Exception:
            self.close()  # the caller gets no engine to close
            raise
        self._exit_stack.callback(self._lora_folders.close)
        self._scoring = Scoring(self._llm, self._prompt_builder, self._lora_folders)

    def submit(self, request: Request) -> ChunkStream:
        """Queue a request and return its stream; see `EngineProtocol.submit`."""
        self._validator.check(request)
        prompt = self._build_prompt(request)
        params = conversion.to_sampling_params(request.sampling, prompt.kv_transfer_params)
        lora_request = self._lora_folders.lora_request(request.adapter)
        stream = ChunkStream(request, lambda: future.cancel())
        with self._lock:
            if not self.alive:
                raise EngineError("the engine is stopped.")
            if self._num_active >= self._max_waiting:
                raise EngineBusy(f"{self._num_active} requests are on their way, as many as may; ask again in a while.")
            self._num_active += 1
            self._counters["requests"] += 1
        # A weak reference: the answer to a stream that was garbage-collected is cancelled.
        answer = self._answer(prompt, params, lora_request, request, ref(stream))
        future = asyncio.run_coroutine_threadsafe(answer, self._loop)
        return stream

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Chunk]]:
        """The chunks of every answer, in the order of the requests, which run together."""
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            yield list(stream)

    def score(self, prompts: Sequence[Prompt], scorer: LabelScorer, *, sender: Sender = ANONYMOUS) -> torch.Tensor:
        """See `EngineProtocol.score`. Runs a request for every prompt and, behind it, for every inner node of the trie.

        Raises UnsupportedModel for a head: vLLM gives no hidden states beside answers.
        """
        words = word_scorer(scorer)
        for prompt in prompts:
            self._validator.check_prompt(prompt, words.max_extra_tokens)
        scores = self._run(self._scoring.score(prompts, words, sender.cache_salt))
        self._counters["scored"] += len(prompts)
        return scores

    def token_logprobs(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """See `EngineProtocol.token_logprobs`. A static prefix is recomputed for it.

        Raises RequestError for a learned prefix, behind which vLLM gives no log-probabilities.
        """
        logprobs = []
        for prompt, entries in zip(prompts, self._prompt_logprobs(prompts, 0), strict=True):
            indices = prompt.output_indices or range(len(prompt.token_ids) - 1)
            logprobs.append(torch.tensor([entries[index].logprob for index in indices]))
        return logprobs

    def prompt_logprobs(self, prompt: Prompt, top: int, *, sender: Sender = ANONYMOUS) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`. Raises as `token_logprobs` does."""
        (entries,) = self._prompt_logprobs([prompt], top, sender)
        return entries

    def embed(
        self, prompts: Sequence[Prompt], pooling: Pooling | None = None, *, sender: Sender = ANONYMOUS
    ) -> torch.Tensor:
        """Refused: vLLM generates or embeds, not both. Raises UnsupportedModel."""
        raise UnsupportedModel(
            "vLLM gives no hidden states beside answers, so it embeds nothing here; serve with --engine embedded."
        )

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Refused: vLLM's workers keep their keys and values. Raises UnsupportedModel."""
        raise UnsupportedModel(
            "the vLLM engine computes no prefix; run `foreword publish` or `foreword cache` beside the server, which "
            "sees what is published at once."
        )

    @property
    def alive(self) -> bool:
        """False once it is closed or broken."""
        return not self._closed and not self._llm.errored

    def statistics(self) -> dict[str, float]:
        """``waiting``, ``running``, ``cache_usage`` (a fraction), and counters since the start."""
        return {**self._counters, **self._gauges}

    def close(self) -> None:
        """End vLLM's processes; unfinished requests end as cancelled."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._exit_stack.close()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build_prompt(self, request: Request | Prompt) -> PrefixedPrompt:
        generates = isinstance(request, Request)
        return self._prompt_builder.build(
            request.token_ids,
            request.prefix,
            request.prefix_length,
            soft=request.soft,
            penalized=generates and request.sampling.repetition_penalty != 1.0,
            cache_salt=request.cache_salt if generates else "",
        )

    def _prompt_logprobs(
        self, prompts: Sequence[Prompt], top: int, sender: Sender = ANONYMOUS
    ) -> list[list[TokenLogprob]]:
        """Log-probabilities of every prompt's own tokens but the first; the prompts run together."""
        for prompt in prompts:
            self._validator.check_prompt(prompt, 1)
            if prompt.prefix is not None and prompt.prefix.token_ids is None:
                raise RequestError(
                    "vLLM gives no log-probabilities of a prompt behind a learned prefix: it would run what stands in "
                    "the prefix's places; leave echo and prompt_logprobs out, or serve with --engine embedded."
                )
        token_ids = [self._build_prompt(prompt).token_ids for prompt in prompts]
        params = conversion.prompt_logprobs_params(top)
        prefixed = [PrefixedPrompt(ids, None, own_salt=sender.cache_salt) for ids in token_ids]
        requests = [(each, params, prompt.adapter) for each, prompt in zip(prefixed, prompts, strict=True)]
        outputs = self._run(self._scoring.generate(requests))
        return [
            [
                conversion.to_token_logprob(ids[position], output.prompt_logprobs[position], top)
                for position in range(prompt.prefix_length + 1, len(ids))
            ]
            for prompt, ids, output in zip(prompts, token_ids, outputs, strict=True)
        ]

    async def _answer(
        self,
        prompt: PrefixedPrompt,
        params: Any,
        lora_request: Any,
        request: Request,
        stream_ref: ref[ChunkStream],
    ) -> None:
        """Put the chunks of an answer into its stream, until it ends or is cancelled."""
        last = Chunk("", (), "cancelled")
        try:
            # Of vLLM the lowest priority comes first, and only under --scheduling-policy priority.
            outputs = self._llm.generate(
                prompt.to_vllm(), params, uuid.uuid4().hex, lora_request=lora_request, priority=-request.priority
            )
            async for output in outputs:
                chunk = conversion.to_chunk(output, request.sampling.logprobs)
                self._counters["tokens_generated"] += len(chunk.token_ids)
                if (stream := stream_ref()) is None or stream.cancelled:
                    await outputs.aclose()
                elif chunk.finish_reason is not None:
                    last = chunk
                else:
                    stream.cached_tokens = max(
                        stream.cached_tokens, (output.num_cached_tokens or 0) - request.prefix_length
                    )
                    stream.put(chunk)
                del stream
        except asyncio.CancelledError:
            pass
        except Exception as error:
            last = Chunk("", (), "error", error=_error_sentence(error))
        with self._lock:
            self._num_active -= 1
            self._counters["cancelled"] += last.finish_reason == "cancelled"
            self._counters["failed"] += last.finish_reason == "error"
        if (stream := stream_ref()) is not None:
            stream.put(last)

    def _record_stats(self, scheduler: Any, iteration: Any) -> None:
        """Add the statistics of a step; called in the event loop's thread."""
        if scheduler is not None:
            waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self._gauges.update(
                waiting=waiting, running=scheduler.num_running_reqs, cache_usage=scheduler.kv_cache_usage
            )
            self._counters["tokens_reused"] += scheduler.prefix_cache_stats.hits
        if iteration is not None:
            self._counters["tokens_run"] += iteration.num_prompt_tokens + iteration.num_generation_tokens
            self._counters["preempted"] += iteration.num_preempted_reqs

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop's thread, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _error_sentence(error: Exception) -> str:
    return f"vLLM did not answer: {' '.join(str(error).split()) or repr(error)}"
