"""`ResponseRewriter`: replaces the model name in vLLM's responses by the task's, and hides what only vLLM needs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from foreword.core.json_reader import parse_json


@dataclass(frozen=True)
class ResponseRewriter:
    """Rewrites vLLM's response, whole or streamed, into one of the task that the client asked.

    Attributes:
        model: the name that the client gave as ``model``.
        num_placeholders: leading placeholder tokens of the prompt, which are removed from it.
    """

    model: str
    num_placeholders: int

    async def rewrite(self, response: Response) -> Response:
        """The same response with rewritten bodies; errors pass as they are."""
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._rewrite_events(response.body_iterator)
            return response
        if response.status_code != 200:
            return response
        headers = {key: value for key, value in response.headers.items() if key not in _BODY_HEADERS}
        return JSONResponse(self._rewrite_body(parse_json(bytes(response.body))), headers=headers)

    async def _rewrite_events(self, events: Any) -> AsyncIterator[str]:
        async for event in events:
            text = event if isinstance(event, str) else bytes(event).decode()
            yield "\n".join(map(self._rewrite_line, text.split("\n")))

    def _rewrite_line(self, line: str) -> str:
        data = line.removeprefix("data: ")
        if data == line or not data.startswith("{"):
            return line
        return f"data: {json.dumps(self._rewrite_body(parse_json(data)), ensure_ascii=False)}"

    def _rewrite_body(self, body: dict[str, Any]) -> dict[str, Any]:
        if "model" in body:
            body["model"] = self.model
        body.pop("kv_transfer_params", None)
        if self.num_placeholders:
            for part in (body, *body.get("choices", ())):
                if part.get("prompt_token_ids") is not None:
                    part["prompt_token_ids"] = part["prompt_token_ids"][self.num_placeholders :]
                part.pop("prompt_text", None)
        return body


_BODY_HEADERS = ("content-length", "content-type")
