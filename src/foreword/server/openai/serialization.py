"""JSON bodies of OpenAI's two completions endpoints: their common envelope, and a serializer of choices for each."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from foreword.engine.protocol import Chunk, Request, Stream
from foreword.server.openai.generation import CompletionOutput
from foreword.server.openai.logprobs import CharacterCount, Logprob, chat_logprobs, text_logprobs
from foreword.server.openai.tool_calls import FunctionCallWriter, ToolCallWriter
from foreword.text.tool_reader import ToolReader


class ChoiceSerializer(Protocol):
    """Writes the entries of ``choices`` of one endpoint.

    Attributes:
        id_prefix: of the response's ``id``.
        object_name: the ``object`` of a complete response.
        chunk_object_name: the ``object`` of every event of a stream.
        strips_labels: whether the word of a label is answered without the blanks around it.
    """

    id_prefix: str
    object_name: str
    chunk_object_name: str
    strips_labels: bool

    def choice(self, index: int, output: CompletionOutput) -> dict[str, Any]:
        """The choice of a complete response."""
        ...

    def opening_choice(self, index: int) -> dict[str, Any] | None:
        """The choice of the event in front of the engine's first chunk, if the endpoint has one."""
        ...

    def chunk_choices(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """The choices, one an event, of one chunk of the engine; the last one has the ``finish_reason``.

        None where nothing of the answer has become certain.
        """
        ...

    def empty_choice(self, index: int) -> dict[str, Any]:
        """The choice of an event without news of the answer."""
        ...


class ChatSerializer:
    """``/v1/chat/completions``.

    Args:
        tokenizer: decodes the tokens of log-probabilities.
        make_reader: tells text and calls of tools apart in one answer; ``None`` where no tools are offered.
        functions: write a call by its older name, ``function_call``.
    """

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"
    strips_labels = True

    def __init__(
        self, tokenizer: Any, make_reader: Callable[[], ToolReader] | None = None, *, functions: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._make_reader = make_reader
        self._write_calls = FunctionCallWriter if functions else ToolCallWriter
        self._streamed: dict[int, tuple[ToolReader, ToolCallWriter]] = {}  # by choice

    def choice(self, index: int, output: CompletionOutput) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
        reason: str = output.finish_reason
        if self._make_reader is not None:
            reader, writer = self._make_reader(), self._write_calls()
            message |= writer.message([*reader.push(output.text), *reader.finish()])
            reason = writer.finish_reason(reason)
        logprobs = chat_logprobs(self._tokenizer, output.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def opening_choice(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def chunk_choices(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        deltas, reason = self._deltas(index, chunk)
        choices = [self._delta(index, delta) for delta in deltas]
        if chunk.logprobs and not choices:
            choices = [self._delta(index, {"content": ""})]
        if choices:
            choices[0]["logprobs"] = chat_logprobs(self._tokenizer, chunk.logprobs)
        return choices if reason is None else [*choices, self._delta(index, {}, reason)]

    def _deltas(self, index: int, chunk: Chunk) -> tuple[list[dict[str, Any]], str | None]:
        if self._make_reader is None:
            return [{"content": chunk.text}] if chunk.text or chunk.finish_reason is None else [], chunk.finish_reason
        if index not in self._streamed:
            self._streamed[index] = self._make_reader(), self._write_calls()
        reader, writer = self._streamed[index]
        parts = reader.push(chunk.text)
        if chunk.finish_reason is None:
            return [writer.delta(part) for part in parts], None
        deltas = [writer.delta(part) for part in (*parts, *reader.finish())]
        return deltas, writer.finish_reason(chunk.finish_reason)

    def empty_choice(self, index: int) -> dict[str, Any]:
        return self._delta(index, {"content": ""})

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


@dataclass(frozen=True)
class PromptEcho:
    """The prompt that ``echo`` puts in front of a completion.

    Attributes:
        text: as it was sent, or decoded from the ids that were.
        logprobs: of its tokens, as ``choices[].logprobs`` has them; ``None`` if not asked for.
        characters: of its tokens.
    """

    text: str
    logprobs: dict[str, Any] | None
    characters: int = 0


class CompletionSerializer:
    """``/v1/completions``; with ``echoes``, one for every choice, in front of the completions."""

    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_object_name = "text_completion"
    strips_labels = False

    def __init__(self, tokenizer: Any, echoes: Sequence[PromptEcho] = ()) -> None:
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._counts: dict[int, CharacterCount] = {}  # of every choice's tokens so far

    def choice(self, index: int, output: CompletionOutput) -> dict[str, Any]:
        echo = self.opening_choice(index)
        choice = self._choice(index, output.text, output.finish_reason, output.logprobs)
        if echo is None:
            return choice
        parts = [each["logprobs"] for each in (echo, choice) if each["logprobs"] is not None]
        logprobs = {name: [entry for part in parts for entry in part[name]] for name in parts[0]} if parts else None
        return {**choice, "text": echo["text"] + choice["text"], "logprobs": logprobs}

    def opening_choice(self, index: int) -> dict[str, Any] | None:
        if not self._echoes:
            return None
        echo = self._echoes[index]
        self._counts[index] = CharacterCount(echo.characters)
        return {"index": index, "text": echo.text, "logprobs": echo.logprobs, "finish_reason": None}

    def chunk_choices(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        return [self._choice(index, chunk.text, chunk.finish_reason, chunk.logprobs)]

    def empty_choice(self, index: int) -> dict[str, Any]:
        return self._choice(index, "", None, ())

    def _choice(self, index: int, text: str, reason: str | None, logprobs: Sequence[Logprob]) -> dict[str, Any]:
        written = text_logprobs(self._tokenizer, logprobs, self._counts.setdefault(index, CharacterCount()))
        return {"index": index, "text": text, "logprobs": written, "finish_reason": reason}


@dataclass(frozen=True)
class ResponseMeta:
    """The fields that all bodies of one response share.

    Attributes:
        serializer: of the endpoint.
        model: as the request named it.
        system_fingerprint: ``task@version`` that answers, or the base model's name.
        response_id: 32 hexadecimal digits behind the endpoint's ``id_prefix``.
        created: Unix time in seconds.
    """

    serializer: ChoiceSerializer
    model: str
    system_fingerprint: str
    response_id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, choices: Iterable[dict[str, Any]], usage: dict[str, Any]) -> bytes:
        """The body of a complete response. Choices are written one by one: all at once would keep other threads
        waiting."""
        before, after = _json(self._with_choices(self.serializer.object_name, ()) | {"usage": usage}).split(
            b'"choices":[]', 1
        )
        return b"".join((before, b'"choices":[', b",".join(map(_json, choices)), b"]", after))

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The body of one event of a stream."""
        return self._with_choices(self.serializer.chunk_object_name, choices)

    def _with_choices(self, object_name: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.serializer.id_prefix + self.response_id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": list(choices),
        }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


CACHED_TOKENS_STEP = 64
"""Where there are keys, found tokens are told in whole steps (OpenAI's are of 128): the users of a program share its
key, and could try out word by word what another of them sent."""


def usage(streams: Sequence[Stream], completion_tokens: int) -> dict[str, Any]:
    """OpenAI's ``usage``: prefixes count as prompt tokens, and as ``cached_tokens`` with all else that was not run."""
    prompt_tokens = sum(stream.request.prompt_tokens for stream in streams)
    cached_tokens = sum(stream.request.prefix_length + _told_cached_tokens(stream) for stream in streams)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _told_cached_tokens(stream: Stream) -> int:
    found = stream.cached_tokens
    return found - found % CACHED_TOKENS_STEP if stream.request.tenant else found


def prompt_token_ids(request: Request) -> list[int]:
    """Token ids of the prompt, with those of a static prefix; learned positions have none."""
    known = request.prefix.token_ids if request.prefix is not None else None
    return [*(known or ())[: request.prefix_length], *request.token_ids]
