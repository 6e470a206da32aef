"""`ResponseWriter`: one answer as the events and the object of ``/v1/responses``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from foreword.engine.protocol import Chunk
from foreword.server.openai.logprobs import chat_logprobs
from foreword.server.openai.tool_calls import new_call_id
from foreword.text.tool_reader import CallDelta, TextDelta, ToolReader

Event = dict[str, Any]


class ResponseWriter:
    """Writes the events of one response in their order; the last one holds the whole response.

    Args:
        response: the fields of the response that do not change, in OpenAI's shape.
        tokenizer: decodes the tokens of log-probabilities.
        reader: tells text and calls of tools apart; ``None`` where no tools are offered.
    """

    def __init__(self, response: Mapping[str, Any], tokenizer: Any, reader: ToolReader | None) -> None:
        self._response = {**response, "status": "in_progress", "output": [], "usage": None}
        self._tokenizer, self._reader = tokenizer, reader
        self._sequence_number = 0
        self._item: dict[str, Any] | None = None  # that is being written
        self._blank = ""  # in front of a call it is no message
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is held back

    def opening(self) -> Iterator[Event]:
        """The events in front of the engine's first chunk."""
        yield self._event("response.created", response=deepcopy(self._response))
        yield self._event("response.in_progress", response=deepcopy(self._response))

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """The events of one chunk of the engine."""
        written = chat_logprobs(self._tokenizer, chunk.logprobs)
        self._logprobs += written["content"] if written is not None else []
        if self._reader is not None:
            parts = [*self._reader.push(chunk.text), *(self._reader.finish() if chunk.finish_reason else ())]
        else:
            parts = [TextDelta(chunk.text)] if chunk.text else []
        for part in parts:
            yield from self._text(part.text) if isinstance(part, TextDelta) else self._call(part)

    def finish(self, reason: str, usage: Mapping[str, Any]) -> Iterator[Event]:
        """The events behind the engine's last chunk.

        Args:
            reason: the finish reason.
            usage: as chat completions have it.
        """
        complete = reason != "length"
        if not self._response["output"]:
            yield from self._open_message()
            if self._blank:
                yield from self._delta(self._blank)
        if self._logprobs and self._item is not None and self._item["type"] == "message":
            yield from self._delta("")  # of tokens that end the answer, and have no text
        yield from self._close("completed" if complete else "incomplete")
        details = usage["prompt_tokens_details"]
        self._response |= {
            "status": "completed" if complete else "incomplete",
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "completed_at": int(time.time()) if complete else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": details["cached_tokens"], "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }
        kind = "response.completed" if complete else "response.incomplete"
        yield self._event(kind, response=deepcopy(self._response))

    def error(self, body: Mapping[str, Any]) -> Event:
        """The event of a failure in the middle, after which nothing comes.

        Args:
            body: OpenAI's ``error``.
        """
        fields = {name: body[name] for name in ("code", "message", "param")}
        return self._event("error", **fields, error=dict(body))

    def _text(self, text: str) -> Iterator[Event]:
        if self._item is None or self._item["type"] != "message":
            text, self._blank = self._blank + text, ""
            if self._reader is not None and not text.strip():
                self._blank = text
                return
            yield from self._close("completed")
            yield from self._open_message()
        yield from self._delta(text)

    def _delta(self, text: str) -> Iterator[Event]:
        assert self._item is not None
        part, logprobs = self._item["content"][0], self._logprobs
        self._logprobs = []
        part["text"] += text
        part["logprobs"] += logprobs
        yield self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _call(self, part: CallDelta) -> Iterator[Event]:
        if part.name is not None:
            self._blank, self._logprobs = "", []
            yield from self._close("completed")
            call = {"call_id": new_call_id(), "name": part.name, "arguments": ""}
            yield from self._open({"id": f"fc_{secrets.token_hex(16)}", "type": "function_call", **call})
        assert self._item is not None
        if part.arguments:
            self._item["arguments"] += part.arguments
            yield self._item_event("response.function_call_arguments.delta", delta=part.arguments)

    def _open_message(self) -> Iterator[Event]:
        message = {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "role": "assistant", "content": []}
        yield from self._open(message)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        message = self._response["output"][-1]
        message["content"].append(part)
        yield self._item_event("response.content_part.added", content_index=0, part=deepcopy(part))

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._item = {**item, "status": "in_progress"}
        self._response["output"].append(self._item)
        yield self._event("response.output_item.added", output_index=self._index, item=deepcopy(self._item))

    def _close(self, status: str) -> Iterator[Event]:
        if (item := self._item) is None:
            return
        if item["type"] == "message":
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._item_event("response.output_text.done", content_index=0, **done)
            yield self._item_event("response.content_part.done", content_index=0, part=deepcopy(part))
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._item_event("response.function_call_arguments.done", **done)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=self._index, item=deepcopy(item))
        self._item = None

    @property
    def _index(self) -> int:
        return len(self._response["output"]) - 1

    def _item_event(self, kind: str, **fields: Any) -> Event:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return event
