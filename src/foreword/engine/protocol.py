"""What server, evaluation and benchmarks know of any engine: submit, stream, cancel, score, statistics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from foreword.core import Adapter, KVPrefix, ModelIdentity, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import torch

    from foreword.text.label_scorers import LabelScorer
    from foreword.text.request import Prompt

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate.

    Attributes:
        token_ids: the tokens that are run; at least one. Ids below 0 name rows of ``soft``.
        prefix: what stands in front, or ``None``.
        prefix_length: how many of its positions are used (fewer than all only for a static prefix).
        sampling: how to choose tokens and when to stop.
        soft: ``[S, hidden]`` soft tokens inside ``token_ids``, or ``None``.
        adapter: changes of the model's layers for this request alone, or ``None``.
        priority: higher ones are admitted first and give way last.
        group: among equals, groups take turns; mostly the task's name.
    """

    token_ids: tuple[int, ...]
    prefix: KVPrefix | None = None
    prefix_length: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    priority: int = 0
    group: str = ""

    @classmethod
    def of(cls, prompt: Prompt, sampling: SamplingParams, group: str = "") -> Request:
        front = prompt.prefix, prompt.prefix_length
        return cls(prompt.token_ids, *front, sampling, prompt.soft, prompt.adapter, group=group)

    @property
    def prompt_tokens(self) -> int:
        """All positions in front of the answer, the prefix included."""
        return self.prefix_length + len(self.token_ids)

    @property
    def known_ids(self) -> tuple[int, ...]:
        """Ids in front of the answer; those of a static prefix are known, a learned position has none."""
        front = (self.prefix.token_ids or ())[: self.prefix_length] if self.prefix is not None else ()
        return (*front, *(token for token in self.token_ids if token >= 0))

    def copies(self, count: int) -> list[Request]:
        """As many requests for the same answer: seeds count up from the request's own, so that they differ.

        Without a seed each draws its own; greedy copies are equal.
        """
        seed = self.sampling.seed
        seeds = [None if seed is None else seed + index for index in range(count)]
        return [replace(self, sampling=replace(self.sampling, seed=each)) for each in seeds]

    @property
    def own_limit(self) -> int:
        """Positions behind the prefix that it can ever run; the last token of an answer never is."""
        return len(self.token_ids) + self.sampling.max_tokens - 1


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log-probability of a chosen token, before temperature, penalties and constraints.

    Attributes:
        logprob: natural logarithm.
        top: the most probable tokens, best first; the chosen one need not be among them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: new text; may be empty while a character or a stop text is incomplete.
        token_ids: new tokens.
        finish_reason: set on the last chunk.
        error: one sentence if the engine failed this request.
        logprobs: one for each of ``token_ids`` if the request asked for them, else empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Stream(Protocol):
    """An answer on its way; iterate in a thread or in an event loop, not both.

    Hold on to it: an answer whose stream nobody holds any more is cancelled.

    Attributes:
        reused: tokens of the prompt, behind its prefix, that did not have to be run; known with the first chunk.
    """

    request: Request
    reused: int

    def __iter__(self) -> Iterator[Chunk]: ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    def cancel(self) -> None:
        """Stop it; everything it holds is free at the next step."""
        ...


class EngineProtocol(Protocol):
    """An engine serves one model; `tokenizer`, `identity`, `context`, `causal` and `decoder` describe it.

    One that `reads_bank` has workers that read prefixes by themselves, by their source: tasks for it need no values.
    """

    name: str
    tokenizer: Any
    identity: ModelIdentity
    context: int | None
    causal: bool
    decoder: bool
    reads_bank: bool

    @property
    def alive(self) -> bool:
        """Whether it can still answer."""
        ...

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises RequestError, PromptTooLong or ModelMismatch for one that can never run."""
        ...

    def score(self, prompts: Sequence[Prompt], choice: LabelScorer) -> torch.Tensor | np.ndarray:
        """Scores ``[answers, labels]`` float32: a prompt has an answer for each of its places, mostly one."""
        ...

    def likelihood(self, prompts: Sequence[Prompt]) -> Sequence[torch.Tensor | np.ndarray]:
        """Log-probability of the prompts' own tokens, each given all before it, prefix included: ``[places]`` float32
        for each prompt, of the token behind each of its places; without places, of every token but the first, which
        nothing is run before, and but soft ones.

        Raises RequestError, PromptTooLong or ModelMismatch for a prompt that can never be run, UnsupportedModel for an
        encoder.
        """
        ...

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """What the model thought of a prompt's own tokens, and of the ``top`` most probable in their places: of every
        token but the first and soft ones. Raises as `likelihood` does.
        """
        ...

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Keys and values of a text that runs alone, computed between the steps of whatever is answered meanwhile.

        Raises PromptTooLong for a text that leaves no room for a request, UsageError for none, UnsupportedModel for an
        encoder.
        """
        ...

    def statistics(self) -> dict[str, float]:
        """Counters and gauges: queue, batch, tokens, cache."""
        ...

    def close(self) -> None: ...
