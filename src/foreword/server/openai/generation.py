"""Engine streams of one HTTP request: submitted, gathered or merged, and cancelled in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive

from foreword.core import SamplingParams, Task
from foreword.engine.protocol import Chunk, FinishReason, Sender, Stream
from foreword.errors import AnswerTimeout, EngineError, RequestError
from foreword.evaluation.answers import Answers
from foreword.server.openai.logprobs import Logprob
from foreword.server.operations.admission import Admission
from foreword.server.operations.fair_threads import FairThreads
from foreword.server.operations.usage import UsageRecorder
from foreword.text.prompt import Prompt
from foreword.text.task_prompts import answers_label
from foreword.text.tool_choice import AnswerPlan

T = TypeVar("T")

_WORK_AN_ANSWER = 1024
"""How many characters take as long to handle as an answer to submit, about."""


@dataclass(frozen=True)
class CompletionOutput:
    """All chunks of one finished stream, joined."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Logprob, ...] = ()


class PromptOnlyStream:
    """A stream of one token without its token, for a request that asks for none; see `Stream`."""

    def __init__(self, stream: Stream) -> None:
        self.request, self.cached_tokens, self._stream = stream.request, 0, stream

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._stream:
            yield self._without_tokens(chunk)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._stream:
            yield self._without_tokens(chunk)

    def cancel(self) -> None:
        self._stream.cancel()

    def _without_tokens(self, chunk: Chunk) -> Chunk:
        self.cached_tokens = self._stream.cached_tokens
        return Chunk("", (), "length" if chunk.finish_reason == "stop" else chunk.finish_reason, chunk.error)


@dataclass(frozen=True, eq=False)
class Submission:
    """All that one HTTP request asks of an engine.

    Attributes:
        answers: takes the requests.
        task: that is asked; ``None`` for the base model.
        prompts: each with its sampling parameters.
        n: completions of every prompt.
        strip: see `Answers.submit`.
        sender: who asks.
        recorder: counts the tokens of all of them.
        plan: of answers that may call tools.
    """

    answers: Answers
    task: Task | None
    prompts: Sequence[tuple[Prompt, SamplingParams]]
    n: int
    strip: bool
    sender: Sender
    recorder: UsageRecorder
    plan: AnswerPlan | None = None

    @property
    def ref(self) -> str:
        """The version that answers, or the base model's name."""
        return self.answers.engine.name if self.task is None else self.task.ref

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.prefix_length + len(prompt.token_ids) for prompt, _ in self.prompts)

    def charge_prompts(self) -> Submission:
        """The same with its prompts counted, which are about to be run for something else than their answers."""
        return replace(self, recorder=self.recorder.charge_prompts(self.prompt_tokens))

    async def submit(self, admission: Admission, compiling: FairThreads, receive: Receive) -> list[Stream]:
        """Submit all prompts, or none: if one is refused, those before it are cancelled.

        Args:
            admission: has threads for many of them.
            compiling: threads for constraints, which are compiled as they are submitted and may take long.
            receive: tells when the client has gone, whose constraint is then not begun.
        """
        answers = len(self.prompts) * self.n
        if any(sampling.constraint is not None for _, sampling in self.prompts):
            with admission.hold(answers):
                return await while_connected(receive, compiling.run(self.recorder.caller.name, self._submit))
        if self.task is not None and answers_label(self.task):
            # The words of labels are tokenized at their first, which would hold up every other client.
            return await run_in_threadpool(self._submit)
        work = answers * _WORK_AN_ANSWER + len(self.prompts[0][0].token_ids)
        return await admission.run(self.recorder.caller, self._submit, work=work, answers=answers)

    def _submit(self) -> list[Stream]:
        streams: list[Stream] = []
        try:
            for prompt, sampling in self.prompts:
                found = self.answers.submit(self.task, prompt, sampling, n=self.n, strip=self.strip, sender=self.sender)
                streams += self.recorder.track(found)
        except Exception:
            _cancel(streams)
            raise
        return streams


async def gather_outputs(streams: Sequence[Stream], timeout: float | None) -> list[CompletionOutput]:
    """Outputs of all streams, complete and in order.

    Raises EngineError for a stream that ended early, AnswerTimeout after ``timeout`` seconds.
    """
    try:
        async with asyncio.timeout(timeout):
            return list(await asyncio.gather(*map(_collect, streams)))
    except TimeoutError:
        raise _timeout_error(timeout) from None


async def merge_streams(streams: Sequence[Stream], timeout: float | None) -> AsyncIterator[tuple[int, Chunk]]:
    """Chunks of all streams as they come, each with the index of its stream. Raises as `gather_outputs` does."""
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    if len(streams) == 1:  # mostly so; a task and a queue would cost more than all else that is done for a token
        chunks = _checked(streams[0])
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _timeout_error(timeout) from None
            yield 0, chunk
    queue: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()
    readers = [asyncio.create_task(_read_into(queue, index, stream)) for index, stream in enumerate(streams)]
    running = len(streams)
    try:
        while running:
            try:
                async with asyncio.timeout_at(deadline):
                    index, chunk = await queue.get()
            except TimeoutError:
                raise _timeout_error(timeout) from None
            if isinstance(chunk, Exception):
                raise chunk
            yield index, chunk
            running -= chunk.finish_reason is not None
    finally:
        for reader in readers:
            reader.cancel()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects. Raises RequestError then."""
    task, listener = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, listener), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError("the client has gone before its answer was begun.")
        return task.result()
    finally:
        listener.cancel()
        task.cancel()


@asynccontextmanager
async def cancel_on_disconnect(receive: Receive, streams: Sequence[Stream]) -> AsyncIterator[None]:
    """Cancel the streams when the client disconnects, and those that still run when the block ends."""

    async def listen_for_disconnect() -> None:
        await _wait_for_disconnect(receive)
        _cancel(streams)

    listener = asyncio.create_task(listen_for_disconnect())
    try:
        yield
    finally:
        listener.cancel()
        _cancel(streams)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _timeout_error(seconds: float | None) -> AnswerTimeout:
    return AnswerTimeout(f"the answer took more than the {seconds:g} s that this server allows; ask for fewer tokens.")


def _incomplete_error(error: str | None) -> EngineError:
    return EngineError(error or "the engine stopped before the answer was complete; ask again.")


def _cancel(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.cancel()


async def _checked(stream: Stream) -> AsyncIterator[Chunk]:
    """The stream's chunks. Raises EngineError for one that is cancelled or fails."""
    async for chunk in stream:
        if chunk.finish_reason in ("cancelled", "error"):
            raise _incomplete_error(chunk.error)
        yield chunk


async def _collect(stream: Stream) -> CompletionOutput:
    chunks = [chunk async for chunk in _checked(stream)]
    reason = chunks[-1].finish_reason if chunks else None
    if reason is None:
        raise _incomplete_error(None)
    ids = tuple(token for chunk in chunks for token in chunk.token_ids)
    logprobs = tuple(logprob for chunk in chunks for logprob in chunk.logprobs)
    return CompletionOutput("".join(chunk.text for chunk in chunks), ids, reason, logprobs)


async def _read_into(queue: asyncio.Queue[tuple[int, Chunk | Exception]], index: int, stream: Stream) -> None:
    try:
        async for chunk in _checked(stream):
            queue.put_nowait((index, chunk))
    except Exception as error:  # handed over: the reader of the queue raises it
        queue.put_nowait((index, error))
