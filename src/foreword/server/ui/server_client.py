"""`ServerClient`: what the page asks of its own server, over the paths that everybody uses."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from foreword.server.ui.answer_pane import AnswerPane

AuthHeaders = str | None
"""What a visitor's browser shows the server with every request: its Authorization header, if there are keys."""


class Refused(Exception):
    """The server said no. ``str(error)`` is its sentence."""


@dataclass(frozen=True)
class PlaygroundRequest:
    """What is asked of every model.

    Attributes:
        text: as it was typed; a JSON object gives the fields of a task's template by name.
        chat: as a user's message; otherwise the text is continued as it is.
        max_tokens: of the answer.
        temperature: 0 takes the best token every time.
    """

    text: str
    chat: bool = True
    max_tokens: int = 128
    temperature: float = 0.0

    def request(self, model: str, base: bool) -> tuple[str, dict[str, Any]]:
        """The path and the body that ask a model; the base model has no template to fill."""
        fields = None if base else fields_of(self.text)
        settings = {"model": model, "max_tokens": self.max_tokens, "temperature": self.temperature}
        settings |= {"stream": True, "stream_options": {"include_usage": True}}
        if fields is not None:
            return "/v1/completions", {**settings, "inputs": fields}
        if self.chat:
            return "/v1/chat/completions", {**settings, "messages": [{"role": "user", "content": self.text}]}
        return "/v1/completions", {**settings, "prompt": self.text}


class ServerClient:
    """The server's routes, with the key that the visitor shows: the page may do what that key may do.

    Args:
        transport: how requests reach the server.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        # No timeout: an answer may wait for its turn, and the visitor can stop it.
        self._client = httpx.AsyncClient(transport=transport, base_url="http://foreword", timeout=None)

    async def models(self, shown: AuthHeaders) -> list[dict[str, Any]]:
        """The base model, then its tasks. Raises Refused, as all methods do."""
        return (await self.get("/v1/models", shown))["data"]

    async def classify(self, shown: AuthHeaders, model: str, text: str) -> dict[str, float]:
        """The probability of each label."""
        body = {"model": model, "input": [fields_of(text) or text]}
        return (await self.post("/v1/classify", shown, body))["data"][0]["probs"]

    async def ask(
        self, shown: AuthHeaders, model: str, question: PlaygroundRequest, base: bool
    ) -> AsyncIterator[AnswerPane]:
        """One answer, again and again as it grows; a refusal ends it with its sentence."""
        column, start = AnswerPane(model), time.perf_counter()
        path, body = question.request(model, base)
        try:
            async with self._client.stream("POST", path, json=body, headers=_headers(shown)) as response:
                await _check(response)
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        column = _grown(column, event, time.perf_counter() - start)
                        yield column
        except Refused as error:
            column = dataclasses.replace(column, error=str(error))
        yield dataclasses.replace(column, done=True)

    async def get(self, path: str, shown: AuthHeaders) -> dict[str, Any]:
        """A JSON answer."""
        return await self._answer("GET", path, shown, None)

    async def post(self, path: str, shown: AuthHeaders, body: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON answer to a JSON body."""
        return await self._answer("POST", path, shown, body)

    async def _answer(
        self, method: str, path: str, shown: AuthHeaders, body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        response = await self._client.request(method, path, json=body, headers=_headers(shown))
        await _check(response)
        return response.json()


def fields_of(text: str) -> dict[str, str] | None:
    """The fields that a JSON object of texts names, or ``None`` for anything else."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if found and all(isinstance(value, str) for value in found.values()) else None


def _headers(shown: AuthHeaders) -> dict[str, str]:
    return {"Authorization": shown} if shown else {}


async def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    await response.aread()
    raise Refused(_sentence(response))


def _sentence(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {response.status_code}."


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any]]:
    """The objects of a stream. Raises Refused for one that tells of an error."""
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise Refused(event["error"]["message"])
        yield event


def _grown(column: AnswerPane, event: Mapping[str, Any], seconds: float) -> AnswerPane:
    """A column with one event of its stream, ``seconds`` after the request."""
    column = dataclasses.replace(column, ref=event["system_fingerprint"])
    if usage := event.get("usage"):
        return dataclasses.replace(
            column,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            completion_tokens=usage["completion_tokens"],
        )
    if not (text := _text(event["choices"])):
        return column
    first = seconds if column.first is None else column.first
    return dataclasses.replace(column, text=column.text + text, first=first, last=seconds)


def _text(choices: Sequence[Mapping[str, Any]]) -> str:
    if not choices:
        return ""
    choice = choices[0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""
