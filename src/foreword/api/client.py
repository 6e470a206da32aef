"""`Client`: the calls that ask a Foreword server, or the one inside `foreword.Engine`: waiting, async and streaming.

Every call is written once, as a coroutine `aNAME` or an asynchronous generator `astream_NAME`; the twin without the
``a`` waits for it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from typing import Any, Self, TypeVar, Unpack

import httpx
import numpy as np

from foreword.api.background_loop import BackgroundLoop, Blocking
from foreword.api.options import ChatOptions, GenerateOptions, chat_body, check_options
from foreword.api.results import Classification, Generation, GenerationChunk, Tagging
from foreword.api.wire import read_chunks, read_error, read_generation
from foreword.core import Pooling, Task
from foreword.core.overview import Overview, WithOverview
from foreword.errors import AnswerTimeout, EngineError, RequestError, UsageError

T = TypeVar("T")
PromptOrFields = str | Mapping[str, Any] | Sequence[int]
"""A text or token ids to be continued behind a task's prefix, or values for the fields of its template."""
Messages = Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's shape."""
Input = str | Mapping[str, Any]
"""A text for the only field of a task's template, or values for its fields."""

MAX_AT_ONCE = 256
"""Requests of one call that are open at a time; an engine runs fewer in a batch and has the others wait."""
INPUTS_AT_ONCE = 256
"""Inputs of one call that are labelled or embedded in one request."""


class Client(WithOverview):
    """Asks a server; made by `foreword.connect`. `foreword.Engine` has the same calls.

    >>> with foreword.connect("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     client.classify(["a masterpiece", "dull and long"], "reviews")
    [Classification('positive', 0.981), Classification('negative', 0.954)]

    Args:
        http: sends requests; its base URL is the server's. It is closed with this.
        where: how to name the server in errors.
    """

    def __init__(self, http: httpx.AsyncClient, where: str) -> None:
        self.loop = BackgroundLoop(f"foreword {where}")
        self._http, self._where = http, where
        self._base: str | None = None

    def overview(self) -> Overview:
        """Where it asks."""
        return Overview("Client", {"server": self._where})

    async def agenerate(
        self, prompt: PromptOrFields, task: Task | str | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continue a text behind a task's prefix, or fill the task's template and answer.

        Args:
            prompt: a text or token ids, taken verbatim; a dict has values for the fields of the task's template.
            task: a task's name, ``name@version`` or a `Task`; ``None`` is the base model.
            options: see `GenerateOptions`.

        Raises:
            UnknownTask, ModelMismatch: no such task, or one of another model.
            RequestError, PromptTooLong, UsageError: the request can never be answered.
            EngineBusy, EngineError: the engine or the server cannot answer now.
        """
        with self._model_name(task) as model:
            return await self._answer("/v1/completions", await self._prompt_body(prompt, model, options))

    async def agenerate_many(
        self, prompts: Sequence[PromptOrFields], task: Task | str | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generation]:
        """`agenerate` for many prompts, which run together; answers are in their order."""
        return await _at_once([self.agenerate(prompt, task, **options) for prompt in prompts])

    async def astream_generate(
        self, prompt: PromptOrFields, task: Task | str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[GenerationChunk]:
        """The chunks of `agenerate` as they come; the last has ``finish_reason`` and ``usage``."""
        async for chunk in self.loop.aiterate(self._stream_generate(prompt, task, options)):
            yield chunk

    def stream_generate(
        self, prompt: PromptOrFields, task: Task | str | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[GenerationChunk]:
        """`astream_generate`, waiting for each chunk; an iterator that is closed early cancels the answer."""
        return self.loop.iterate(self._stream_generate(prompt, task, options))

    async def achat(
        self, messages: Messages, task: Task | str | None = None, **options: Unpack[ChatOptions]
    ) -> Generation:
        """Answer a conversation, through the task's template or the model's chat template.

        Args:
            messages: in OpenAI's shape, such as ``[{"role": "user", "content": "Hello"}]``.
            task: a task's name, ``name@version`` or a `Task`; ``None`` is the base model.
            options: see `ChatOptions`.

        Raises as `agenerate` does.
        """
        with self._model_name(task) as model:
            return await self._answer("/v1/chat/completions", await self._chat_body(messages, model, options))

    async def achat_many(
        self, conversations: Sequence[Messages], task: Task | str | None = None, **options: Unpack[ChatOptions]
    ) -> list[Generation]:
        """`achat` for many conversations, which run together; answers are in their order."""
        return await _at_once([self.achat(messages, task, **options) for messages in conversations])

    async def astream_chat(
        self, messages: Messages, task: Task | str | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncIterator[GenerationChunk]:
        """The chunks of `achat` as they come; the last has ``finish_reason`` and ``usage``."""
        async for chunk in self.loop.aiterate(self._stream_chat(messages, task, options)):
            yield chunk

    def stream_chat(
        self, messages: Messages, task: Task | str | None = None, **options: Unpack[ChatOptions]
    ) -> Iterator[GenerationChunk]:
        """`astream_chat`, waiting for each chunk; an iterator that is closed early cancels the answer."""
        return self.loop.iterate(self._stream_chat(messages, task, options))

    async def aclassify(self, texts: Input | Sequence[Input], task: Task | str) -> list[Classification]:
        """The label of every input, and the probability of each label; or all its labels, or its number.

        Raises UsageError for a task without labels, and as `agenerate` does.
        """
        data = await self._score("/v1/classify", _inputs(texts), task)
        return [_classification(each) for each in data]

    async def atag(self, texts: str | Sequence[Input | Sequence[str]], task: Task | str) -> list[Tagging]:
        """A tag for every word of every input: a text is cut into words at white space, a list holds words.

        Raises UsageError for a task that labels whole texts, and as `agenerate` does.
        """
        data = await self._score("/v1/tag", _inputs(texts), task)
        return [Tagging(tuple(each["words"]), tuple(each["tags"]), tuple(each["probs"])) for each in data]

    async def aembed(
        self, texts: str | Sequence[str], task: Task | str | None = None, *, pooling: Pooling | None = None
    ) -> np.ndarray:
        """Embeddings of length 1 of texts, behind a task's prefix if one is named: ``[N, hidden]`` float32.

        Args:
            pooling: ``last``, ``mean`` or ``cls``; by default the model's own.

        Raises as `agenerate` does.
        """
        with self._model_name(task) as model:
            body = {"model": await self._named(model), "encoding_format": "base64", "pooling": pooling}
            data = await self._post_inputs("/v1/embeddings", body, _inputs(texts))
        return np.stack([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data])

    async def atasks(self) -> list[str]:
        """Names of the tasks that can be asked."""
        base, *tasks = await self._models()
        return [each["id"] for each in (tasks if base.get("parent") is None else [base, *tasks])]

    generate = Blocking(agenerate)
    generate_many = Blocking(agenerate_many)
    chat = Blocking(achat)
    chat_many = Blocking(achat_many)
    classify = Blocking(aclassify)
    tag = Blocking(atag)
    embed = Blocking(aembed)
    tasks = Blocking(atasks)

    def close(self) -> None:
        """Cancel what runs and close the connections. May be called twice."""
        if self.loop.is_running:
            with suppress(EngineError):  # another thread closes it, which `loop.close` waits for
                self.loop.run(self._http.aclose())
            self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def _model_name(self, task: Task | str | None) -> AbstractContextManager[str | None]:
        """The name by which requests of this block name a task; ``None`` for the base model."""
        if not isinstance(task, Task):
            return nullcontext(task)
        if not task.version:
            raise UsageError(
                f"task '{task.name}' is in no bank, so a server does not know it; publish it in the server's bank and "
                "give its name."
            )
        return nullcontext(task.ref)

    async def _named(self, model: str | None) -> str:
        """A task's name, or the name of the server's base model for ``None``."""
        if model is None and self._base is None:
            first = (await self._models())[0]
            if first.get("parent") is not None:
                raise RequestError(f"the key for {self._where} does not reach the base model; name a task.")
            self._base = first["id"]
        return model or self._base or ""

    async def _models(self) -> list[dict[str, Any]]:
        return (await self.loop.arun(self._request("GET", "/v1/models")))["data"]

    async def _prompt_body(
        self, prompt: PromptOrFields, model: str | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        check_options(options)
        what = {"inputs": dict(prompt)} if isinstance(prompt, Mapping) else {"prompt": _text_or_ids(prompt)}
        return {"model": await self._named(model), **what, **options}

    async def _chat_body(self, messages: Messages, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
        check_options(options)
        if isinstance(messages, str):
            raise UsageError("messages must be a list such as [{'role': 'user', 'content': 'Hello'}], got a text.")
        return {"model": await self._named(model), "messages": list(messages), **chat_body(options)}

    async def _answer(self, path: str, body: Mapping[str, Any]) -> Generation:
        return read_generation(await self._post(path, body))

    async def _score(self, path: str, inputs: Sequence[object], task: Task | str | None) -> list[dict[str, Any]]:
        with self._model_name(task) as model:
            return await self._post_inputs(path, {"model": await self._named(model)}, inputs)

    async def _post_inputs(self, path: str, body: Mapping[str, Any], inputs: Sequence[object]) -> list[dict[str, Any]]:
        """The ``data`` of all inputs, of which a server takes a bounded number in one request."""
        data: list[dict[str, Any]] = []
        for start in range(0, len(inputs), INPUTS_AT_ONCE):
            data += (await self._post(path, {**body, "input": inputs[start : start + INPUTS_AT_ONCE]}))["data"]
        return data

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self.loop.arun(self._request("POST", path, body))

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON body of a response; runs in the background loop, to which the connections belong."""
        try:
            response = await self._http.request(method, path, **_content(body))
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error
        _raise_for_status(response)
        return response.json()

    async def _stream_generate(
        self, prompt: PromptOrFields, task: Task | str | None, options: Mapping[str, Any]
    ) -> AsyncGenerator[GenerationChunk]:
        with self._model_name(task) as model:
            body = await self._prompt_body(prompt, model, options)
            async with aclosing(self._stream("/v1/completions", body)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _stream_chat(
        self, messages: Messages, task: Task | str | None, options: Mapping[str, Any]
    ) -> AsyncGenerator[GenerationChunk]:
        with self._model_name(task) as model:
            body = await self._chat_body(messages, model, options)
            async with aclosing(self._stream("/v1/chat/completions", body)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[GenerationChunk]:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self._http.stream("POST", path, **_content(streamed)) as response:
                if not response.is_success:
                    await response.aread()
                    _raise_for_status(response)
                async with aclosing(read_chunks(response)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error

    def _transport_error(self, error: httpx.HTTPError) -> EngineError:
        if isinstance(error, httpx.TimeoutException):
            return AnswerTimeout(
                f"{self._where} did not answer in time; ask for fewer tokens, or give a longer timeout."
            )
        reason = str(error) or type(error).__name__
        return EngineError(
            f"no answer from {self._where} ({reason}); check the address, or start it with foreword serve."
        )


def connect(url: str, *, api_key: str | None = None, timeout: float | None = 600.0) -> Client:
    """The calls of `foreword.Engine` over a server, with the same results and the same errors.

    Nothing is sent before the first call.

    >>> with foreword.connect("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     client.generate("Once upon a time", max_tokens=8).text
    ' there was a'

    Args:
        url: of the server, with or without ``/v1`` behind it.
        api_key: by default ``$FOREWORD_API_KEY``.
        timeout: seconds that a response, or a part of a streamed one, may take; ``None`` waits for ever.

    Raises UsageError for an address that is none.
    """
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address of a server; write it as http://127.0.0.1:8000.")
    key = api_key or os.environ.get("FOREWORD_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Requests wait in the engine's queue, not here.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_AT_ONCE)
    return Client(httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, limits=limits), base)


def _content(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """A JSON body as httpx takes it; escaped to ASCII, since a text may hold half of a surrogate pair."""
    if body is None:
        return {}
    try:
        content = json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"a request holds JSON values alone ({error}); convert the others.") from None
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _text_or_ids(prompt: str | Sequence[int]) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    ids = list(prompt)
    if not all(isinstance(each, int) for each in ids):
        raise UsageError("the prompt must be a text, a dict of fields or token ids; several go to generate_many.")
    return ids


def _inputs(texts: Any) -> list[Any]:
    inputs = [texts] if isinstance(texts, str | Mapping) else list(texts)
    if not inputs:
        raise UsageError("there is no input; give at least one text.")
    return [dict(each) if isinstance(each, Mapping) else each for each in inputs]


async def _at_once(calls: Sequence[Awaitable[T]]) -> list[T]:
    """The results of many calls, some of them open at a time; if one fails, the others are cancelled."""
    gate = asyncio.Semaphore(MAX_AT_ONCE)

    async def gated(call: Awaitable[T]) -> T:
        async with gate:
            return await call

    tasks = [asyncio.ensure_future(gated(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _classification(entry: Mapping[str, Any]) -> Classification:
    labels = entry.get("labels")
    return Classification(
        label=entry.get("label", ""),
        probs=entry.get("probs", {}),
        labels=tuple(labels) if labels is not None else None,
        value=entry.get("value"),
    )


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": f"{response.request.url} answered {response.status_code}: {response.text[:200]}"}
    retry_after = response.headers.get("Retry-After", "")
    raise read_error(response.status_code, error, float(retry_after) if retry_after.isdigit() else 1.0)
