"""Answers on their way from the engine to one client: submitted, gathered or merged, and freed in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive

from foreword.engine.protocol import Chunk, EngineProtocol, FinishReason, Request, Stream, TokenLogprob
from foreword.errors import AnswerTimeout
from foreword.server.operations.error_handlers import unfinished
from foreword.server.operations.usage import UsageRecorder


@dataclass(frozen=True)
class Completion:
    """A complete answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


async def submit_all(
    engine: EngineProtocol, requests: Sequence[Sequence[Request]], watch: UsageRecorder
) -> list[Stream]:
    """Submit all requests, or none: if one is refused, those before it are cancelled.

    Args:
        requests: for every prompt, one for each of its answers.
        watch: over all answers.
    """
    if any(each.sampling.constraint is not None for copies in requests for each in copies):
        # A constraint is compiled as it is submitted, which may take long and would hold up every other client.
        return await run_in_threadpool(_submit_all, engine, requests, watch)
    return _submit_all(engine, requests, watch)


async def gather(streams: Sequence[Stream], seconds: float | None) -> list[Completion]:
    """All answers, complete, in the order of their streams.

    Raises EngineError for one that ended early, AnswerTimeout if they take more than ``seconds``.
    """
    try:
        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*map(_complete, streams)))
    except TimeoutError:
        raise _late(seconds) from None


async def merge(streams: Sequence[Stream], seconds: float | None) -> AsyncIterator[tuple[int, Chunk]]:
    """Chunks of all streams as they come, each with the index of its stream. Raises as `gather` does."""
    end = None if seconds is None else asyncio.get_running_loop().time() + seconds
    if len(streams) == 1:  # mostly so; a task and a queue would cost more than all else that is done for a token
        async for chunk in _until(_checked(streams[0]), end, seconds):
            yield 0, chunk
        return
    queue: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    left = len(streams)
    try:
        while left:
            try:
                async with asyncio.timeout_at(end):
                    index, chunk = await queue.get()
            except TimeoutError:
                raise _late(seconds) from None
            if isinstance(chunk, Exception):
                raise chunk
            yield index, chunk
            left -= chunk.finish_reason is not None
    finally:
        for pump in pumps:
            pump.cancel()


@asynccontextmanager
async def held(receive: Receive, streams: Sequence[Stream]) -> AsyncIterator[None]:
    """Cancel the streams when the client goes away, and whatever is left of them at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        _cancel(streams)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        _cancel(streams)


def _late(seconds: float | None) -> AnswerTimeout:
    return AnswerTimeout(f"the answer took more than the {seconds:g} s that this server allows; ask for fewer tokens.")


def _submit_all(engine: EngineProtocol, requests: Sequence[Sequence[Request]], watch: UsageRecorder) -> list[Stream]:
    streams: list[Stream] = []
    try:
        for copies in requests:
            streams += watch.over([engine.submit(each) for each in copies])
    except Exception:
        _cancel(streams)
        raise
    return streams


def _cancel(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.cancel()


async def _checked(stream: Stream) -> AsyncIterator[Chunk]:
    async for chunk in stream:
        if chunk.finish_reason in ("cancelled", "error"):
            raise unfinished(chunk.error)
        yield chunk


async def _until(chunks: AsyncIterator[Chunk], end: float | None, seconds: float | None) -> AsyncIterator[Chunk]:
    while True:
        try:
            async with asyncio.timeout_at(end):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _late(seconds) from None
        yield chunk


async def _complete(stream: Stream) -> Completion:
    chunks = [chunk async for chunk in _checked(stream)]
    reason = chunks[-1].finish_reason if chunks else None
    if reason is None:
        raise unfinished(None)
    ids = tuple(token for chunk in chunks for token in chunk.token_ids)
    logprobs = tuple(logprob for chunk in chunks for logprob in chunk.logprobs)
    return Completion("".join(chunk.text for chunk in chunks), ids, reason, logprobs)


async def _pump(index: int, stream: Stream, queue: asyncio.Queue[tuple[int, Chunk | Exception]]) -> None:
    try:
        async for chunk in _checked(stream):
            queue.put_nowait((index, chunk))
    except Exception as error:  # handed over: the reader of the queue raises it
        queue.put_nowait((index, error))
