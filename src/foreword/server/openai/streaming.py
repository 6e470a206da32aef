"""Answers as server-sent events, exactly as OpenAI's clients read them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foreword.engine.protocol import Chunk, Stream
from foreword.errors import ForewordError
from foreword.server.openai.generation import held, merge
from foreword.server.openai.schema import Generation
from foreword.server.openai.serialization import ResponseMeta, prompt_token_ids, usage
from foreword.server.operations.error_handlers import error_body


class SSEResponse(StreamingResponse):
    """A response of events; the streams behind it are cancelled when the client goes away.

    Args:
        content: events, each as its text.
        streams: what the events come from.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], streams: Sequence[Stream]) -> None:
        # Proxies must neither keep the events nor collect them.
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Held here and not in `content`, which never starts if the client is gone before the first byte.
        async with held(receive, self._streams):
            await super().__call__(scope, receive, send)


async def events(
    envelope: ResponseMeta, streams: Sequence[Stream], body: Generation, seconds: float | None
) -> AsyncIterator[str]:
    """Every event of a response, the last one being ``[DONE]``, or an error after which nothing comes."""
    try:
        async for piece in _pieces(envelope, streams, body, seconds):
            yield f"data: {_json(piece)}\n\n"
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already, so the body has to tell
        if not isinstance(error, ForewordError):
            logging.getLogger(__name__).exception("a stream failed")
        # No [DONE] behind it: a client that overlooks the error must not take the answer for complete.
        yield f"event: error\ndata: {json.dumps(error_body(error))}\n\n"


async def _pieces(
    envelope: ResponseMeta, streams: Sequence[Stream], body: Generation, seconds: float | None
) -> AsyncIterator[dict[str, Any]]:
    # With usage asked for, OpenAI's other events carry it as null.
    more = {"usage": None} if body.include_usage else {}
    count = 0
    for index, stream in enumerate(streams):
        for choice in _opening(envelope, index, stream, body):
            yield envelope.piece([choice]) | more
    async for index, chunk in merge(streams, seconds):
        count += len(chunk.token_ids)
        for choice in _choices(envelope, index, chunk, body):
            yield envelope.piece([choice]) | more
    if body.include_usage:
        yield envelope.piece([]) | {"usage": usage(streams[:: body.n or 1], count)}


def _opening(envelope: ResponseMeta, index: int, stream: Stream, body: Generation) -> Iterator[dict[str, Any]]:
    choice = envelope.dialect.opening(index)
    if body.return_token_ids:
        choice = choice or envelope.dialect.pieces(index, Chunk("", ()))[0]
        choice["prompt_token_ids"] = prompt_token_ids(stream.request)
    if choice is not None:
        yield choice


def _choices(envelope: ResponseMeta, index: int, chunk: Chunk, body: Generation) -> list[dict[str, Any]]:
    if body.return_token_ids:
        choices = envelope.dialect.pieces(index, chunk)
        choices[0]["token_ids"] = list(chunk.token_ids)
        return choices
    # A chunk may bring a token and no text yet, which tells a client nothing.
    empty = not chunk.text and not chunk.logprobs and chunk.finish_reason is None
    return [] if empty else envelope.dialect.pieces(index, chunk)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
