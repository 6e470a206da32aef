"""`Scoring`: vLLM's requests of one step that give log-probabilities, of labels behind prompts among them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foreword.core import Adapter
from foreword.errors import EngineError, UnsupportedModel
from foreword.text.label_scorers import LabelScorer, WordScorer
from foreword.text.prompt import Prompt
from foreword.vllm import conversion
from foreword.vllm.lora_folders import LoRAFolders
from foreword.vllm.prompt_builder import PrefixedPrompt, PromptBuilder

MAX_CONCURRENT_SCORES = 256
"""Requests of one call that vLLM has at a time."""

ScoringRequest = tuple[PrefixedPrompt, Any, Adapter | None]
"""A prompt, vLLM's ``SamplingParams`` of one step, and an adapter."""


@dataclass(frozen=True, eq=False)
class Scoring:
    """Asks vLLM in the event loop that its client belongs to.

    Attributes:
        llm: vLLM's ``AsyncLLM``.
        prompt_builder: puts prefixes in front.
        lora_folders: gives adapters to vLLM.
    """

    llm: Any
    prompt_builder: PromptBuilder
    lora_folders: LoRAFolders

    async def score(self, prompts: Sequence[Prompt], scorer: LabelScorer, cache_salt: str = "") -> torch.Tensor:
        """`foreword.engine.protocol.EngineProtocol.score` of prompts that were checked: a request for every prompt and,
        behind it, for every inner node of the trie.

        Raises UnsupportedModel for a head: vLLM gives no hidden states beside answers.
        """
        trie = word_scorer(scorer).trie
        rows: list[tuple[int, list[int]]] = []
        requests: list[ScoringRequest] = []
        for row, prompt in enumerate(prompts):
            for parent, nodes in trie.children.items():
                path = [trie.tokens[node] for node in _path(trie.parents, parent)]
                prefixed = self.prompt_builder.build(
                    (*prompt.token_ids, *path),
                    prompt.prefix,
                    prompt.prefix_length,
                    soft=prompt.soft,
                    cache_salt=cache_salt,
                )
                tokens = [trie.tokens[node] for node in nodes]
                params = conversion.scoring_params(tokens, prefixed.kv_transfer_params)
                rows.append((row, nodes))
                requests.append((prefixed, params, prompt.adapter))
        logprobs = torch.full((len(prompts), len(trie.tokens)), -torch.inf)
        for (row, nodes), output in zip(rows, await self.generate(requests), strict=True):
            (entry,) = output.outputs[0].logprobs
            logprobs[row, nodes] = torch.tensor([entry[trie.tokens[node]].logprob for node in nodes])
        return trie.label_scores(logprobs)

    async def generate(self, requests: Sequence[ScoringRequest]) -> list[Any]:
        """The one ``RequestOutput`` of each request, in order. Raises EngineError if vLLM fails one."""
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_SCORES)

        async def generate(prompt: PrefixedPrompt, params: Any, adapter: Adapter | None) -> Any:
            async with semaphore:
                outputs: AsyncGenerator[Any] = self.llm.generate(
                    prompt.to_vllm(), params, uuid.uuid4().hex, lora_request=self.lora_folders.lora_request(adapter)
                )
                async for output in outputs:
                    if output.outputs[0].finish_reason == "error":
                        raise EngineError(conversion.to_chunk(output).error or "vLLM failed.")
                    return output
                raise EngineError("vLLM ended a request without an answer.")

        return await asyncio.gather(*(generate(*request) for request in requests))


def word_scorer(scorer: LabelScorer) -> WordScorer:
    """The scorer of words. Raises UnsupportedModel for another one."""
    if not isinstance(scorer, WordScorer):
        raise UnsupportedModel("vLLM gives no hidden states to heads; serve this task with --engine embedded.")
    return scorer


def _path(parents: Sequence[int | None], node: int | None) -> list[int]:
    """Nodes from the root of a trie down to ``node``."""
    path = []
    while node is not None:
        path.append(node)
        node = parents[node]
    return path[::-1]
