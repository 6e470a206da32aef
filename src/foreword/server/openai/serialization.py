"""The JSON of answers: what OpenAI's two completions endpoints have in common, and the two dialects."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from foreword.engine.protocol import Chunk, Request, Stream, TokenLogprob
from foreword.server.openai.generation import Completion
from foreword.server.openai.logprobs import chat_logprobs, text_logprobs


class ChoiceSerializer(Protocol):
    """How one endpoint writes a choice, complete or in pieces."""

    id_prefix: str
    whole: str
    piece: str

    def choice(self, index: int, answer: Completion) -> dict[str, Any]:
        """A complete choice."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream begins with, if anything."""
        ...

    def pieces(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """A chunk of the engine; the last one tells why the answer ended."""
        ...


class ChatSerializer:
    """``/v1/chat/completions``."""

    id_prefix = "chatcmpl-"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def choice(self, index: int, answer: Completion) -> dict[str, Any]:
        logprobs = chat_logprobs(self._tokenizer, answer.logprobs)
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._piece(index, {"role": "assistant", "content": ""})

    def pieces(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        text = self._piece(index, {"content": chunk.text})
        text["logprobs"] = chat_logprobs(self._tokenizer, chunk.logprobs)
        if chunk.finish_reason is None:
            return [text]
        end = self._piece(index, {}, chunk.finish_reason)
        return [text, end] if chunk.text or chunk.logprobs else [end]

    def _piece(self, index: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


@dataclass(frozen=True)
class PromptEcho:
    """A prompt that is to stand in front of its answer.

    Attributes:
        text: as it was sent, or of the ids that were.
        logprobs: of its tokens, as ``choices[].logprobs`` has them; ``None`` if nobody asked.
    """

    text: str
    logprobs: dict[str, Any] | None


class CompletionSerializer:
    """``/v1/completions``; with echoes, one for every choice, in front of the answers."""

    id_prefix = "cmpl-"
    whole = "text_completion"
    piece = "text_completion"

    def __init__(self, tokenizer: Any, echoes: Sequence[PromptEcho] = ()) -> None:
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._offsets: dict[int, int] = {}  # characters of every choice's tokens so far

    def choice(self, index: int, answer: Completion) -> dict[str, Any]:
        echo = self.opening(index)
        choice = self._choice(index, answer.text, answer.finish_reason, answer.logprobs)
        if echo is None:
            return choice
        parts = [each["logprobs"] for each in (echo, choice) if each["logprobs"] is not None]
        logprobs = {name: [entry for part in parts for entry in part[name]] for name in parts[0]} if parts else None
        return {**choice, "text": echo["text"] + choice["text"], "logprobs": logprobs}

    def opening(self, index: int) -> dict[str, Any] | None:
        if not self._echoes:
            return None
        echo = self._echoes[index]
        if echo.logprobs is not None:
            tokens = echo.logprobs["tokens"]
            self._offsets[index] = sum(map(len, tokens))
        return {"index": index, "text": echo.text, "logprobs": echo.logprobs, "finish_reason": None}

    def pieces(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        return [self._choice(index, chunk.text, chunk.finish_reason, chunk.logprobs)]

    def _choice(self, index: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        written = text_logprobs(self._tokenizer, logprobs, self._offsets.get(index, 0))
        if written is not None:
            self._offsets[index] = written["text_offset"][-1] + len(written["tokens"][-1])
        return {"index": index, "text": text, "logprobs": written, "finish_reason": reason}


@dataclass(frozen=True)
class ResponseMeta:
    """What all bodies of one response share.

    Attributes:
        dialect: of the endpoint.
        model: as the request named it.
        fingerprint: ``task@version`` that answers, or the base model's name.
    """

    dialect: ChoiceSerializer
    model: str
    fingerprint: str
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The body of a complete response."""
        return self._body(self.dialect.whole, choices) | {"usage": usage}

    def piece(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The body of one event of a stream."""
        return self._body(self.dialect.piece, choices)

    def _body(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.dialect.id_prefix + self.key,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }


def usage(streams: Sequence[Stream], completion_tokens: int) -> dict[str, Any]:
    """Tokens of all prompts and answers; the prefix counts, and ``cached_tokens`` says what was not computed."""
    prompt_tokens = sum(stream.request.prompt_tokens for stream in streams)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(s.request.prefix_length + s.cached_tokens for s in streams)},
    }


def prompt_token_ids(request: Request) -> list[int]:
    """The ids in front of the answer; those of a static prefix are known, a learned one has none."""
    known = request.prefix.token_ids if request.prefix is not None else None
    return [*(known or ())[: request.prefix_length], *request.token_ids]
