"""`EngineProtocol` and the data that passes through it: all that server, evaluation and benchmarks know of an engine.

An engine is any class with the members of `EngineProtocol`; it need not derive from anything here. Its answers are
iterables of `Chunk`, for which `foreword.engine.stream.ChunkStream` is ready to use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from foreword.core import Adapter, KVPrefix, ModelIdentity, Pooling, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import torch

    from foreword.text.label_scorers import LabelScorer
    from foreword.text.prompt import Prompt

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Sender:
    """Who sends a request, as far as an engine has to know.

    Attributes:
        tenant: those of equal priority take turns by tenant before they do by group; the name of an API key.
        cache_salt: vLLM's word: keys and values of tokens are shared among requests of equal salt alone.
    """

    tenant: str = ""
    cache_salt: str = ""


ANONYMOUS = Sender()


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to continue with one answer.

    Attributes:
        token_ids: the tokens that are run; at least one. Ids below 0 name rows of ``soft`` (`foreword.core.soft_id`).
        prefix: keys and values in front of the tokens, or ``None``.
        prefix_length: how many of its positions are used (fewer than all only for a static prefix).
        sampling: how to choose tokens and when to stop.
        soft: ``[S, hidden]`` soft tokens inside ``token_ids``, or ``None``.
        adapter: low-rank changes of the model's layers for this request alone, or ``None``.
        priority: higher ones are admitted first and preempted last.
        group: for fair scheduling, requests of equal priority take turns by group; mostly the task's name.
        tenant, cache_salt: see `Sender`.
    """

    token_ids: tuple[int, ...]
    prefix: KVPrefix | None = None
    prefix_length: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    priority: int = 0
    group: str = ""
    tenant: str = ""
    cache_salt: str = ""

    @classmethod
    def from_prompt(
        cls, prompt: Prompt, sampling: SamplingParams, group: str = "", sender: Sender = ANONYMOUS
    ) -> Request:
        return cls(
            prompt.token_ids,
            prompt.prefix,
            prompt.prefix_length,
            sampling,
            prompt.soft,
            prompt.adapter,
            group=group,
            tenant=sender.tenant,
            cache_salt=sender.cache_salt,
        )

    @property
    def prompt_tokens(self) -> int:
        """Positions in front of the answer, the prefix included."""
        return self.prefix_length + len(self.token_ids)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """Token ids in front of the answer, those of a static prefix included; learned positions have none."""
        front = (self.prefix.token_ids or ())[: self.prefix_length] if self.prefix is not None else ()
        return (*front, *(token for token in self.token_ids if token >= 0))

    def fan_out(self, n: int) -> list[Request]:
        """``n`` requests for the same prompt, as OpenAI's ``n`` asks for; their seeds count up from the request's own.

        Without a seed each draws its own; greedy answers are equal.
        """
        seed = self.sampling.seed
        seeds = [None if seed is None else seed + index for index in range(n)]
        return [replace(self, sampling=replace(self.sampling, seed=each)) for each in seeds]

    @property
    def max_cached_tokens(self) -> int:
        """Tokens behind the prefix that the cache holds at most: the last one of an answer is never run."""
        return len(self.token_ids) + self.sampling.max_tokens - 1


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log-probability of a token, before temperature, penalties and constraints.

    Attributes:
        token_id: the token of the answer or of the prompt.
        logprob: natural logarithm.
        top: id and log-probability of the most probable tokens, best first; ``token_id`` need not be among them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class LabelLogprob:
    """Probabilities of a task's labels, in place of a token's, where a label is the answer.

    Attributes:
        word: of the label.
        logprob: natural logarithm of the label's probability among all labels, calibrated as ``/v1/classify`` has it.
        top: words and log-probabilities of the most probable labels, best first.
    """

    word: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer, as one step of the engine adds it.

    Attributes:
        text: new text; may be empty while a character or a stop text is incomplete.
        token_ids: new tokens; the one that ends an answer is here and not in ``text``.
        finish_reason: set on the last chunk and on no other: ``stop`` (a stop token, a stop text, or a complete
            constraint), ``length`` (``max_tokens``), ``cancelled`` or ``error``.
        error: one sentence if the engine failed this request.
        logprobs: one for each of ``token_ids`` if the request asked for them, else empty; of a label one for the word.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprob | LabelLogprob, ...] = ()


class Stream(Protocol):
    """The chunks of one answer; iterate in a thread or in an event loop, not both.

    Keep a reference to it: an answer whose stream was garbage-collected is cancelled.

    Attributes:
        request: what is answered.
        cached_tokens: tokens of the prompt, behind its prefix, that were in the cache and did not have to be run; known
            with the first chunk.
    """

    request: Request
    cached_tokens: int

    def __iter__(self) -> Iterator[Chunk]: ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    def cancel(self) -> None:
        """Stop the answer; its last chunk has the finish reason ``cancelled``."""
        ...


class EngineProtocol(Protocol):
    """An engine runs one model. Its methods may be called from any thread, and `submit` from an event loop too.

    Methods raise `foreword.errors.ForewordError` of the kinds that they name; other exceptions are bugs of the engine.
    An engine that lacks an operation raises UnsupportedModel from it with a sentence that says what to use instead.

    Attributes:
        name: the model's name, under which the server lists it.
        tokenizer: a fast Transformers tokenizer, or an object with the same ``encode``, ``decode`` and special tokens.
        identity: architecture, layer shapes and weights of the model; prefixes must agree with it.
        context: positions that a request may take, prefix and answer included; ``None`` without a limit.
        causal: True for a causal model; False for encoders and encoder-decoders.
        is_encoder_decoder: True for an encoder-decoder, whose answers are written by a decoder of its own.
        loads_prefixes: True if the engine's workers load prefixes from the bank by `KVPrefix.source`; the server then
            keeps its tasks without the values of their prefixes.
    """

    name: str
    tokenizer: Any
    identity: ModelIdentity
    context: int | None
    causal: bool
    is_encoder_decoder: bool
    loads_prefixes: bool

    @property
    def alive(self) -> bool:
        """Whether it can still answer; False once it is closed or broken."""
        ...

    def submit(self, request: Request) -> Stream:
        """Queue a request and return at once.

        Errors while the answer is generated come as a last chunk with the finish reason ``error``.

        Raises:
            RequestError, PromptTooLong, ModelMismatch: the request can never run.
            UnsupportedModel: the model does not generate.
            EngineBusy: too many requests wait already.
            EngineError: the engine is closed.
        """
        ...

    def score(
        self, prompts: Sequence[Prompt], scorer: LabelScorer, *, sender: Sender = ANONYMOUS
    ) -> torch.Tensor | np.ndarray:
        """Scores of the labels for every answer place of the prompts, mostly one place a prompt; waits for them.

        Args:
            prompts: may stand behind different prefixes.
            scorer: the words (`foreword.text.label_scorers.WordScorer`, `MaskScorer`) or the linear head
                (`HeadScorer`) of a task; it says which outputs are needed, and its ``scores`` makes label scores of
                them.
            sender: who asks; those of different tenants take turns.

        Returns:
            ``[places, labels]`` float32, unnormalized: log-probabilities of words, or logits of a head. Places are in
            the order of the prompts.

        Raises:
            RequestError, PromptTooLong, ModelMismatch: a prompt can never run.
            UnsupportedModel: the engine cannot read what the scorer needs.
            EngineError: the engine failed or is closed.
        """
        ...

    def token_logprobs(self, prompts: Sequence[Prompt]) -> Sequence[torch.Tensor | np.ndarray]:
        """Log-probability of the prompts' own tokens, each given all tokens before it, prefix included.

        Returns:
            For every prompt ``[N]`` float32, log-probabilities of the token behind each of its ``N`` output indices;
            without any, of every token that has one before it and is not soft.

        Raises:
            RequestError, PromptTooLong, ModelMismatch: a prompt can never run.
            UnsupportedModel: the model is an encoder.
        """
        ...

    def prompt_logprobs(self, prompt: Prompt, top: int, *, sender: Sender = ANONYMOUS) -> list[TokenLogprob]:
        """Log-probabilities of a prompt's own tokens, and of the ``top`` most probable ones in their places: of every
        token but the first and soft ones. Raises as `token_logprobs` does.
        """
        ...

    def embed(
        self, prompts: Sequence[Prompt], pooling: Pooling | None = None, *, sender: Sender = ANONYMOUS
    ) -> torch.Tensor | np.ndarray:
        """One vector of length 1 (L2) for every prompt, from the hidden states behind the model's last norm.

        Args:
            prompts: may stand behind different prefixes, which the tokens see; only the prompt's own tokens are
                pooled, soft ones not.
            pooling: the last token's state, the first token's (``cls``) or the mean of all; by default the model's
                own, see `foreword.models.pooling`.
            sender: who asks.

        Returns:
            ``[prompts, hidden]`` float32.

        Raises:
            RequestError, PromptTooLong, ModelMismatch: a prompt can never run, or the pooling must be named.
            UnsupportedModel: the engine or the model gives no hidden states.
            EngineError: the engine failed or is closed.
        """
        ...

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Keys and values of a text, computed between the steps of running requests.

        Raises:
            PromptTooLong: the text leaves no room for a request.
            UsageError: there are no tokens.
            UnsupportedModel: the model is an encoder, or the engine gives no keys and values.
        """
        ...

    def statistics(self) -> dict[str, float]:
        """Counters since the start and gauges, by name, such as ``requests``, ``tokens_generated``, ``waiting`` and
        ``running``; the server serves them as metrics."""
        ...

    def close(self) -> None:
        """Free the model; unfinished requests end as cancelled. May be called twice."""
        ...
