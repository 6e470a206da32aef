"""What engines and servers answer: the same classes for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.core.overview import Overview, WithOverview


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of a request.

    Attributes:
        prompt_tokens: in front of the answer, the prefix included.
        completion_tokens: of the answer.
        cached_tokens: of the prompt's, those that were not computed: the prefix, and what the cache had.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def from_json(cls, usage: Mapping[str, Any]) -> TokenUsage:
        """OpenAI's ``usage``."""
        details = usage.get("prompt_tokens_details") or {}
        return cls(usage["prompt_tokens"], usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0)


@dataclass(frozen=True)
class AnswerToken:
    """A token of an answer with its log-probability.

    Attributes:
        token: its text.
        logprob: natural logarithm, as the model has it; ``None`` for a token that it does not predict.
        top: log-probabilities of the most probable tokens in its place, by their text.
    """

    token: str
    logprob: float | None
    top: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Generation(WithOverview):
    """An answer of `generate` or `chat`.

    Attributes:
        text: of the answer; empty for one that only calls tools.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        usage: its tokens.
        model: who answered: ``task@version``, or the base model's name.
        logprobs: its tokens, if ``logprobs`` was asked for.
        token_ids: of the answer, if ``return_token_ids`` was asked for.
        tool_calls: as OpenAI's API has them: ``{"id": ..., "type": "function", "function": {...}}``.
    """

    text: str
    finish_reason: str
    usage: TokenUsage
    model: str
    logprobs: tuple[AnswerToken, ...] = ()
    token_ids: tuple[int, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, to be put behind the others of a conversation."""
        calls = {"tool_calls": [dict(call) for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": "assistant", "content": self.text or None if calls else self.text, **calls}

    def overview(self) -> Overview:
        """The beginning of the text, and how it ended."""
        used = f"{self.usage.prompt_tokens} prompt ({self.usage.cached_tokens} cached) + {self.usage.completion_tokens}"
        calls = ", ".join(str(call.get("function", {}).get("name")) for call in self.tool_calls)
        return Overview(
            f"Generation by {self.model!r}",
            {"text": self.text, "tool calls": calls, "finish_reason": self.finish_reason, "tokens": used},
        )


@dataclass(frozen=True)
class GenerationChunk:
    """A piece of an answer that is streamed. ``str(chunk)`` is its text.

    Attributes:
        text: new text.
        finish_reason: set once, at the end of the answer.
        usage: on the last chunk.
        logprobs: of its tokens, if asked for.
        tool_calls: parts of tool calls, as OpenAI's streams have them.
    """

    text: str
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    logprobs: tuple[AnswerToken, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Classification(WithOverview):
    """The label of one input, or its number.

    Attributes:
        label: the most probable one; empty where the task gives a number.
        probs: probability of every label.
        labels: where a text may have several labels, those that it has: of probability 0.5 or more, maybe none.
        value: the number, of a task that gives one.
    """

    label: str = ""
    probs: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    value: float | None = None

    def __repr__(self) -> str:  # on one line: these come in lists
        if self.value is not None:
            return f"Classification(value={self.value:.4g})"
        if self.labels is not None:
            return f"Classification({', '.join(f'{each!r} {self.probs[each]:.3f}' for each in self.labels)})"
        return f"Classification({self.label!r}, {self.probs.get(self.label, 0.0):.3f})"

    def overview(self) -> Overview:
        """The label, and the most probable ones with their probabilities; or the number."""
        if self.value is not None:
            return Overview(f"Classification {self.value:.4g}", {})
        best = sorted(self.probs.items(), key=lambda pair: -pair[1])[:5]
        return Overview(f"Classification {self.label!r}", {label: f"{prob:.3f}" for label, prob in best})


@dataclass(frozen=True, repr=False)
class Tagging(WithOverview):
    """The tags of one input's words.

    Attributes:
        words: of the input.
        tags: a tag for each word.
        probs: the probability of each tag.
    """

    words: Sequence[str]
    tags: Sequence[str]
    probs: Sequence[float]

    def __repr__(self) -> str:  # on one line: these come in lists
        return f"Tagging({self._tagged()!r})"

    def overview(self) -> Overview:
        """The words with their tags; those tagged ``O`` stand alone."""
        return Overview("Tagging", {"words": self._tagged()})

    def _tagged(self) -> str:
        pairs = zip(self.words, self.tags, strict=True)
        return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in pairs)
