"""Bodies of the HTTP API, read into results and errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import httpx

from foreword.api.results import AnswerToken, Generation, GenerationChunk, TokenUsage
from foreword.core.json_reader import read_json
from foreword.errors import EngineError, ForewordError, LimitReached, RequestError, UnknownModel


def read_generation(body: Mapping[str, Any]) -> Generation:
    """The answer in the body of either completions endpoint."""
    choice = body["choices"][0]
    message = choice.get("message") or {"content": choice.get("text")}
    return Generation(
        text=message.get("content") or "",
        finish_reason=choice["finish_reason"],
        usage=TokenUsage.from_json(body["usage"]),
        model=body.get("system_fingerprint") or body["model"],
        logprobs=_read_logprobs(choice.get("logprobs")),
        token_ids=tuple(choice.get("token_ids") or ()),
        tool_calls=tuple(message.get("tool_calls") or ()),
    )


async def read_chunks(response: httpx.Response) -> AsyncGenerator[GenerationChunk]:
    """The chunks of a stream of server-sent events; those that tell nothing are left out.

    Raises the error of an error event, EngineError for a stream that breaks off.
    """
    last: GenerationChunk | None = None
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event = read_json(data, "an event of the stream", error=EngineError, mend="ask again")
        if "error" in event:
            raise read_error(0, event["error"])
        chunk = _read_chunk(event)
        if chunk.finish_reason is not None or chunk.usage is not None:
            # The end of the answer and its usage are two events, and one chunk.
            last = chunk if last is None else _merged(last, chunk)
        elif chunk.text or chunk.logprobs or chunk.tool_calls:
            yield chunk
    if last is None or last.finish_reason is None:
        raise EngineError("the stream broke off before the answer was complete; ask again.")
    yield last


def read_error(status: int, error: object, retry_after: float = 1.0) -> ForewordError:
    """The error of a response, of the class that the server raised: its code says which."""
    body = error if isinstance(error, Mapping) else {"message": str(error)}
    message, code = str(body.get("message")), body.get("code")
    for kind in _kinds(ForewordError):
        if kind.code == code and "code" in vars(kind):
            return kind(message, retry_after) if issubclass(kind, LimitReached) else kind(message)
    return RequestError(message) if 400 <= status < 500 else EngineError(message)


def _kinds(kind: type[ForewordError]) -> Iterator[type[ForewordError]]:
    """A class and those below it; of an unknown name a server cannot say whether it is a model's, so it is a task's."""
    if kind is not UnknownModel:
        yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def _read_chunk(event: Mapping[str, Any]) -> GenerationChunk:
    usage = TokenUsage.from_json(event["usage"]) if event.get("usage") else None
    if not event["choices"]:
        return GenerationChunk("", usage=usage)
    choice = event["choices"][0]
    delta = choice.get("delta") or {"content": choice.get("text")}
    return GenerationChunk(
        delta.get("content") or "",
        choice.get("finish_reason"),
        usage,
        _read_logprobs(choice.get("logprobs")),
        tuple(delta.get("tool_calls") or ()),
    )


def _merged(end: GenerationChunk, usage: GenerationChunk) -> GenerationChunk:
    return GenerationChunk(
        end.text + usage.text,
        end.finish_reason or usage.finish_reason,
        usage.usage or end.usage,
        end.logprobs + usage.logprobs,
        end.tool_calls + usage.tool_calls,
    )


def _read_logprobs(logprobs: Mapping[str, Any] | None) -> tuple[AnswerToken, ...]:
    if logprobs is None:
        return ()
    if "content" in logprobs:
        return tuple(
            AnswerToken(
                each["token"],
                each["logprob"],
                {top["token"]: top["logprob"] for top in each.get("top_logprobs") or ()},
            )
            for each in logprobs["content"] or ()
        )
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return tuple(
        AnswerToken(token, logprob, top or {})
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    )
