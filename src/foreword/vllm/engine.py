"""`VllmEngine`: vLLM behind the protocol that server, evaluation and benchmarks know."""

from __future__ import annotations

import asyncio
import atexit
import threading
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar
from weakref import ref

import torch

from foreword.core import Adapter, KVPrefix
from foreword.engine.protocol import Chunk, Request, TokenLogprob
from foreword.engine.request_validator import RequestValidator
from foreword.engine.stream import ChunkStream
from foreword.errors import EngineBusy, EngineError, RequestError, UnsupportedModel, UsageError
from foreword.models.model_info import ModelInfo
from foreword.text.label_scorers import LabelScorer, WordScorer
from foreword.text.request import Prompt
from foreword.vllm import compat, conversion
from foreword.vllm.lora_folders import LoRAFolders
from foreword.vllm.prompt_builder import PrefixedPrompt, PromptBuilder

T = TypeVar("T")

COUNTERS = ("requests", "tokens_run", "tokens_generated", "cancelled", "failed", "scored", "preempted", "tokens_reused")
# Requests of one call that are scored at the same time.
SCORED_AT_ONCE = 256


class VllmEngine:
    """Generates and scores with prefixes of a bank, on vLLM.

    vLLM runs in processes of its own; here a thread keeps the event loop that talks to them. Close the engine, or use
    it as a context manager: those processes end with it.

    Args:
        outline: the model.
        bank: where the workers read prefixes, as `Bank` takes it.
        flags: of ``vllm serve``.
        prefix_bytes: bound of the prefixes that a worker keeps in memory.
        max_waiting: requests that may be on their way; more are refused at once.
        max_model_len: positions a request may take, prefix and answer included; the model's context by default.
        allow_other_weights: serve prefixes made for other weights of the same architecture.

    Raises:
        UsageError: flags that vLLM does not take.
        EngineError: vLLM did not start; its own log says why.
    """

    def __init__(
        self,
        outline: ModelInfo,
        bank: str,
        *,
        flags: Sequence[str] = (),
        prefix_bytes: int = 1 << 30,
        max_waiting: int = 4096,
        max_model_len: int | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        self.name, self.tokenizer, self.identity = outline.name, outline.tokenizer, outline.identity
        self.causal, self.is_encoder_decoder, self.loads_prefixes = True, False, True
        self._max_waiting = max_waiting
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._gauges: dict[str, float] = {"waiting": 0, "running": 0, "cache_usage": 0.0}
        self._active = 0
        self._lock = threading.Lock()
        length = [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
        arguments = compat.arguments(str(outline.folder), bank, prefix_bytes, [*length, *flags])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="foreword-vllm", daemon=True)
        self._thread.start()
        self._held = ExitStack()
        self._held.callback(self._stop_loop)
        try:
            self._llm = self._run(compat.start(arguments, self._record))
        except (UsageError, UnsupportedModel):
            self._held.close()
            raise
        except Exception as error:
            self._held.close()
            raise EngineError(f"vLLM did not start ({error}); what it printed says why.") from error
        self._held.callback(lambda: self._run(compat.end(self._llm)))
        self._closed = False
        atexit.register(self.close)
        config = self._llm.vllm_config
        self.context: int | None = config.model_config.max_model_len
        soft = config.model_config.dtype if config.model_config.enable_prompt_embeds else None
        self._validator = RequestValidator(
            self.identity, self.context, config.model_config.max_model_len, allow_other_weights
        )
        try:
            self._front = PromptBuilder(self.tokenizer, config.kv_transfer_config.engine_id, soft)
            self._adapters = LoRAFolders(outline, config)
        except Exception:
            self.close()  # nobody else holds what has been started
            raise
        self._held.callback(self._adapters.close)

    def submit(self, request: Request) -> ChunkStream:
        """Queue a request and return its stream; see `EngineProtocol.submit`."""
        self._validator.check(request)
        prompt = self._fronted(request)
        params = conversion.sampling(request.sampling, prompt.transfer)
        adapter = self._adapters.request(request.adapter)
        stream = ChunkStream(request, lambda: answering.cancel())
        with self._lock:
            if not self.alive:
                raise EngineError("the engine is stopped.")
            if self._active >= self._max_waiting:
                raise EngineBusy(f"{self._active} requests are on their way, as many as may; ask again in a while.")
            self._active += 1
            self._counters["requests"] += 1
        # Whoever lets go of the stream no longer wants the answer, so it is held weakly.
        answer = self._answer(prompt, params, adapter, request, ref(stream))
        answering = asyncio.run_coroutine_threadsafe(answer, self._loop)
        return stream

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Chunk]]:
        """All answers in the order of their requests, each as the chunks it came in; they run together."""
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            yield list(stream)

    def score(self, prompts: Sequence[Prompt], scorer: LabelScorer) -> torch.Tensor:
        """See `EngineProtocol.score`. A request for every question and inner node of the words' trie.

        Raises UnsupportedModel for a head: vLLM gives no hidden states beside answers.
        """
        if not isinstance(scorer, WordScorer):
            raise UnsupportedModel("vLLM gives no hidden states to heads; serve this task with --engine embedded.")
        for prompt in prompts:
            self._validator.check_prompt(prompt, scorer.longest)
        trie = scorer.trie
        below: dict[int | None, list[int]] = {}
        for node, parent in enumerate(trie.parents):
            below.setdefault(parent, []).append(node)
        asked = [
            (row, nodes, self._scored(prompt, trie.tokens, _path(trie.parents, parent)))
            for row, prompt in enumerate(prompts)
            for parent, nodes in below.items()
        ]
        found = torch.full((len(prompts), len(trie.tokens)), -torch.inf)
        outputs = self._run(
            self._outputs(
                [
                    (
                        prompt,
                        conversion.scoring([trie.tokens[node] for node in nodes], prompt.transfer),
                        prompts[row].adapter,
                    )
                    for row, nodes, prompt in asked
                ]
            )
        )
        for (row, nodes, _), output in zip(asked, outputs, strict=True):
            (entry,) = output.outputs[0].logprobs
            found[row, nodes] = torch.tensor([entry[trie.tokens[node]].logprob for node in nodes])
        self._counters["scored"] += len(prompts)
        return trie.label_scores(found)

    def token_logprobs(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """See `EngineProtocol.token_logprobs`. A static prefix is run anew for it.

        Raises RequestError for a learned prefix, which vLLM cannot read through.
        """
        found = []
        for prompt, entries in zip(prompts, self._read(prompts, 0), strict=True):
            places = prompt.places or range(len(prompt.token_ids) - 1)
            found.append(torch.tensor([entries[place].logprob for place in places]))
        return found

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """See `EngineProtocol.prompt_logprobs`. Raises as `token_logprobs` does."""
        (entries,) = self._read([prompt], top)
        return entries

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
        """``waiting``, ``running``, ``cache_usage`` (a share), and counters since the start."""
        return {**self._counters, **self._gauges}

    def close(self) -> None:
        """End vLLM's processes; unfinished requests end as cancelled."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._held.close()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fronted(self, asked: Request | Prompt) -> PrefixedPrompt:
        penalized = isinstance(asked, Request) and asked.sampling.repetition_penalty != 1.0
        front = asked.prefix, asked.prefix_length
        return self._front(asked.token_ids, *front, soft=asked.soft, penalized=penalized)

    def _scored(self, prompt: Prompt, tokens: Sequence[int], path: Sequence[int]) -> PrefixedPrompt:
        return self._fronted(replace(prompt, token_ids=(*prompt.token_ids, *(tokens[node] for node in path))))

    def _read(self, prompts: Sequence[Prompt], top: int) -> list[list[TokenLogprob]]:
        """Of every prompt's own tokens but the first, all prompts together."""
        for prompt in prompts:
            self._validator.check_prompt(prompt, 1)
            if prompt.prefix is not None and prompt.prefix.token_ids is None:
                raise RequestError(
                    "vLLM gives no log-probabilities of a prompt behind a learned prefix: it would run what stands in "
                    "the prefix's places; leave echo and prompt_logprobs out, or serve with --engine embedded."
                )
        whole = [self._fronted(prompt).token_ids for prompt in prompts]
        params = conversion.reading(top)
        asked = [
            (PrefixedPrompt(ids, None), params, prompt.adapter) for ids, prompt in zip(whole, prompts, strict=True)
        ]
        outputs = self._run(self._outputs(asked))
        return [
            [
                conversion.logprob(ids[at], output.prompt_logprobs[at], top)
                for at in range(prompt.prefix_length + 1, len(ids))
            ]
            for prompt, ids, output in zip(prompts, whole, outputs, strict=True)
        ]

    async def _answer(
        self,
        prompt: PrefixedPrompt,
        params: Any,
        adapter: Any,
        request: Request,
        reader: ref[ChunkStream],
    ) -> None:
        last = Chunk("", (), "cancelled")
        try:
            # To vLLM, the lowest comes first; it looks only behind --scheduling-policy priority.
            outputs = self._llm.generate(
                prompt.prompt, params, uuid.uuid4().hex, lora_request=adapter, priority=-request.priority
            )
            async for output in outputs:
                chunk = conversion.chunk(output, request.sampling.logprobs)
                self._counters["tokens_generated"] += len(chunk.token_ids)
                if (stream := reader()) is None or stream.cancelled:
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
            last = Chunk("", (), "error", error=_sentence(error))
        with self._lock:
            self._active -= 1
            self._counters["cancelled"] += last.finish_reason == "cancelled"
            self._counters["failed"] += last.finish_reason == "error"
        if (stream := reader()) is not None:
            stream.put(last)

    async def _outputs(self, asked: Sequence[tuple[PrefixedPrompt, Any, Adapter | None]]) -> list[Any]:
        """The only output of each request, some at a time."""
        gate = asyncio.Semaphore(SCORED_AT_ONCE)

        async def one(prompt: PrefixedPrompt, params: Any, adapter: Adapter | None) -> Any:
            async with gate:
                generated: AsyncGenerator[Any] = self._llm.generate(
                    prompt.prompt, params, uuid.uuid4().hex, lora_request=self._adapters.request(adapter)
                )
                async for output in generated:
                    if output.outputs[0].finish_reason == "error":
                        raise EngineError(conversion.chunk(output).error or "vLLM failed.")
                    return output
                raise EngineError("vLLM ended a request without an answer.")

        return await asyncio.gather(*(one(*each) for each in asked))

    def _record(self, scheduler: Any, iteration: Any) -> None:
        """Statistics of a step, in the loop's thread."""
        if scheduler is not None:
            waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self._gauges.update(
                waiting=waiting, running=scheduler.num_running_reqs, cache_usage=scheduler.kv_cache_usage
            )
            self._counters["tokens_reused"] += scheduler.prefix_cache_stats.hits
        if iteration is not None:
            self._counters["tokens_run"] += iteration.num_prompt_tokens + iteration.num_generation_tokens
            self._counters["preempted"] += iteration.num_preempted_reqs

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _path(parents: Sequence[int | None], node: int | None) -> list[int]:
    """Nodes from the root down to ``node``."""
    path = []
    while node is not None:
        path.append(node)
        node = parents[node]
    return path[::-1]


def _sentence(error: Exception) -> str:
    return f"vLLM did not answer: {' '.join(str(error).split()) or repr(error)}"
