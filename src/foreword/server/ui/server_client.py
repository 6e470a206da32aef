"""`ServerClient`: the page's HTTP client of its own server, over the public routes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from foreword.core.json_reader import parse_json
from foreword.server.ui.answer_pane import AnswerPane

Authorization = str | None
"""The Authorization header of the visitor's browser; ``None`` on a server without keys."""


class ServerRefusal(Exception):
    """An error response or an error event. ``str(error)`` is its message."""


@dataclass(frozen=True)
class PlaygroundRequest:
    """A prompt of the playground with its sampling options, for any number of models.

    Attributes:
        text: as it was typed; a JSON object gives the fields of a task's template by name.
        chat: send it as a user's message; otherwise as a prompt to continue.
        max_tokens: of the answer.
        temperature: 0 is greedy.
    """

    text: str
    chat: bool = True
    max_tokens: int = 128
    temperature: float = 0.0

    def path_and_body(self, model: str, is_base: bool) -> tuple[str, dict[str, Any]]:
        """Path and body of the HTTP request to a model; the base model has no template to fill."""
        fields = None if is_base else parse_fields(self.text)
        options = {"model": model, "max_tokens": self.max_tokens, "temperature": self.temperature}
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        if fields is not None:
            return "/v1/completions", {**options, "inputs": fields}
        if self.chat:
            return "/v1/chat/completions", {**options, "messages": [{"role": "user", "content": self.text}]}
        return "/v1/completions", {**options, "prompt": self.text}


class ServerClient:
    """Sends requests with the visitor's Authorization header: the page may do what the visitor's key may do.

    Every method raises ServerRefusal for an error response, but for `stream_answer`.

    Args:
        transport: to the server.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        # No timeout: a request may wait in the queue, and the visitor can stop it.
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)

    async def models(self, authorization: Authorization) -> list[dict[str, Any]]:
        """Entries of ``/v1/models``: the base model, then its tasks."""
        return (await self.request("GET", "/v1/models", authorization))["data"]

    async def classify(self, authorization: Authorization, model: str, text: str) -> dict[str, float] | float:
        """The probability of each label, or the number of a task that gives one."""
        body = {"model": model, "input": [parse_fields(text) or text]}
        answer = (await self.request("POST", "/v1/classify", authorization, body))["data"][0]
        return answer["value"] if "value" in answer else answer["probs"]

    async def stream_answer(
        self, authorization: Authorization, model: str, request: PlaygroundRequest, is_base: bool
    ) -> AsyncIterator[AnswerPane]:
        """One model's pane, again with every event of its stream; an error ends it with its message."""
        pane, start = AnswerPane(model), time.perf_counter()
        path, body = request.path_and_body(model, is_base)
        try:
            async with self._client.stream("POST", path, json=body, headers=_headers(authorization)) as response:
                await _raise_for_status(response)
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        pane = _with_event(pane, event, time.perf_counter() - start)
                        yield pane
        except ServerRefusal as error:
            pane = dataclasses.replace(pane, error=str(error))
        yield dataclasses.replace(pane, done=True)

    async def request(
        self, method: str, path: str, authorization: Authorization, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The JSON body of a response."""
        response = await self._client.request(method, path, json=body, headers=_headers(authorization))
        await _raise_for_status(response)
        return response.json()


def parse_fields(text: str) -> dict[str, str] | None:
    """The template fields of a JSON object of texts, or ``None`` for any other text."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        fields = parse_json(text)
    except ValueError:
        return None
    texts = isinstance(fields, dict) and fields and all(isinstance(value, str) for value in fields.values())
    return fields if texts else None


def _headers(authorization: Authorization) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


async def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    await response.aread()
    raise ServerRefusal(_error_message(response))


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {response.status_code}."


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any]]:
    """The JSON objects of an event stream. Raises ServerRefusal for an error event."""
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = parse_json(line.removeprefix("data: "))
        if "error" in event:
            raise ServerRefusal(event["error"]["message"])
        yield event


def _with_event(pane: AnswerPane, event: Mapping[str, Any], seconds: float) -> AnswerPane:
    """The pane after one event of its stream, which came ``seconds`` after the request."""
    pane = dataclasses.replace(pane, ref=event["system_fingerprint"])
    if usage := event.get("usage"):
        return dataclasses.replace(
            pane,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            completion_tokens=usage["completion_tokens"],
        )
    if not (text := _choice_text(event["choices"])):
        return pane
    first = seconds if pane.first_text_seconds is None else pane.first_text_seconds
    return dataclasses.replace(pane, text=pane.text + text, first_text_seconds=first, last_text_seconds=seconds)


def _choice_text(choices: Sequence[Mapping[str, Any]]) -> str:
    if not choices:
        return ""
    choice = choices[0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""
