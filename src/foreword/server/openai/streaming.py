"""Streamed responses: server-sent events as OpenAI's clients read them."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from string import ascii_letters
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foreword.engine.protocol import Chunk, Stream
from foreword.errors import ForewordError
from foreword.server.openai.generation import cancel_on_disconnect, merge_streams
from foreword.server.openai.schema import GenerationRequest
from foreword.server.openai.serialization import ResponseMeta, prompt_token_ids, usage
from foreword.server.operations.error_handlers import error_body

OBFUSCATION_BYTES = 64


class SSEResponse(StreamingResponse):
    """A ``text/event-stream`` response; the engine's streams behind it are cancelled when the client disconnects.

    Args:
        content: the events, each as its text.
        streams: the engine's streams that the events are made from.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], streams: Sequence[Stream]) -> None:
        # Proxies must neither keep the events nor collect them.
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Here and not in `content`, which never starts if the client is gone before the first byte.
        async with cancel_on_disconnect(receive, self._streams):
            await super().__call__(scope, receive, send)


async def sse_events(
    meta: ResponseMeta, streams: Sequence[Stream], body: GenerationRequest, timeout: float | None
) -> AsyncIterator[str]:
    """Every event of a response, the last one being ``[DONE]``, or an error after which nothing comes."""
    try:
        async for chunk in _chunks(meta, streams, body, timeout):
            yield f"data: {_json(chunk)}\n\n"
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already, so the body has to tell
        if not isinstance(error, ForewordError):
            logging.getLogger(__name__).exception("a stream failed")
        # No [DONE] behind it: a client that overlooks the error must not take the answer for complete.
        yield f"event: error\ndata: {json.dumps(error_body(error))}\n\n"


async def _chunks(
    meta: ResponseMeta, streams: Sequence[Stream], body: GenerationRequest, timeout: float | None
) -> AsyncIterator[dict[str, Any]]:
    completion_tokens = 0

    def event(choice: dict[str, Any]) -> dict[str, Any]:
        found = meta.chunk([choice])
        if body.stream_option("continuous_usage_stats"):
            found["usage"] = usage(streams[:: body.n or 1], completion_tokens)
        elif body.stream_option("include_usage"):
            found["usage"] = None  # as OpenAI's other events have it
        if body.stream_option("include_obfuscation"):
            found["obfuscation"] = _obfuscation(choice)
        return found

    for index, stream in enumerate(streams):
        if (choice := _opening_choice(meta, index, stream, body)) is not None:
            yield event(choice)
    async for index, chunk in merge_streams(streams, timeout):
        completion_tokens += len(chunk.token_ids)
        for choice in _chunk_choices(meta, index, chunk, body):
            yield event(choice)
    if body.stream_option("include_usage"):
        yield meta.chunk([]) | {"usage": usage(streams[:: body.n or 1], completion_tokens)}


def _opening_choice(meta: ResponseMeta, index: int, stream: Stream, body: GenerationRequest) -> dict[str, Any] | None:
    choice = meta.serializer.opening_choice(index)
    if body.return_token_ids:
        choice = choice or meta.serializer.empty_choice(index)
        choice["prompt_token_ids"] = prompt_token_ids(stream.request)
    return choice


def _chunk_choices(meta: ResponseMeta, index: int, chunk: Chunk, body: GenerationRequest) -> list[dict[str, Any]]:
    if body.return_token_ids:
        choices = meta.serializer.chunk_choices(index, chunk) or [meta.serializer.empty_choice(index)]
        choices[0]["token_ids"] = list(chunk.token_ids)
        return choices
    # A chunk may bring a token and no text yet, which tells a client nothing.
    empty = not chunk.text and not chunk.logprobs and chunk.finish_reason is None
    return [] if empty else meta.serializer.chunk_choices(index, chunk)


def _obfuscation(choice: dict[str, Any]) -> str:
    """Random letters that fill an event up to a whole number of `OBFUSCATION_BYTES`."""
    missing = -len(_json(choice).encode()) % OBFUSCATION_BYTES
    return "".join(secrets.choice(ascii_letters) for _ in range(missing))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
