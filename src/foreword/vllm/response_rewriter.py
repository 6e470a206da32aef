"""`ResponseRewriter`: an answer that vLLM wrote under its own names, as one of the task that was asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse


@dataclass(frozen=True)
class ResponseRewriter:
    """An answer of vLLM's as one of the task.

    Attributes:
        name: under which it was asked.
        hidden: leading tokens of the prompt that are placeholders, and nobody's business.
    """

    name: str
    hidden: int

    async def response(self, response: Response) -> Response:
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._events(response.body_iterator)
            return response
        if response.status_code != 200:
            return response
        kept = {key: value for key, value in response.headers.items() if key not in ("content-length", "content-type")}
        return JSONResponse(self._object(json.loads(bytes(response.body))), headers=kept)

    async def _events(self, events: Any) -> AsyncIterator[str]:
        async for event in events:
            text = event if isinstance(event, str) else bytes(event).decode()
            yield "\n".join(map(self._line, text.split("\n")))

    def _line(self, line: str) -> str:
        head, sep, data = line.partition("data: ")
        if head or not sep or not data.startswith("{"):
            return line
        return f"data: {json.dumps(self._object(json.loads(data)), ensure_ascii=False)}"

    def _object(self, content: dict[str, Any]) -> dict[str, Any]:
        if "model" in content:
            content["model"] = self.name
        content.pop("kv_transfer_params", None)
        for each in (content, *content.get("choices", ())):
            if self.hidden and each.get("prompt_token_ids") is not None:
                each["prompt_token_ids"] = each["prompt_token_ids"][self.hidden :]
            if self.hidden:
                each.pop("prompt_text", None)
        return content
