"""Calls of tools as OpenAI's API writes them: ``tool_calls``, and the older ``function_call``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from string import ascii_letters, digits
from typing import Any

from foreword.text.tool_reader import AnswerDelta, CallDelta, TextDelta


def new_call_id() -> str:
    """Nine letters and digits: the templates of Mistral take no other id back."""
    return "".join(secrets.choice(ascii_letters + digits) for _ in range(9))


class ToolCallWriter:
    """Writes the deltas of one answer."""

    reason = "tool_calls"

    def __init__(self) -> None:
        self._called = False

    def delta(self, part: AnswerDelta) -> dict[str, Any]:
        """The ``delta`` of an event."""
        if isinstance(part, TextDelta):
            return {"content": part.text}
        self._called = True
        return self._call_delta(part)

    def message(self, parts: Sequence[AnswerDelta]) -> dict[str, Any]:
        """The fields of the whole ``message``; content is null where there are only calls."""
        deltas = [self.delta(part) for part in parts]
        text = "".join(delta.get("content", "") for delta in deltas)
        if not self._called:
            return {"content": text}
        return {"content": text or None, **self._joined(deltas)}

    def finish_reason(self, reason: str) -> str:
        """The ``finish_reason`` of the answer, whose deltas are all written."""
        return self.reason if self._called and reason == "stop" else reason

    def _call_delta(self, part: CallDelta) -> dict[str, Any]:
        call: dict[str, Any] = {"index": part.index}
        function = {"arguments": part.arguments}
        if part.name is not None:
            call |= {"id": new_call_id(), "type": "function"}
            function = {"name": part.name, **function}
        return {"tool_calls": [{**call, "function": function}]}

    def _joined(self, deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
        calls: list[dict[str, Any]] = []
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(calls):
                    calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return {"tool_calls": calls}


class FunctionCallWriter(ToolCallWriter):
    """The same for requests with ``functions``, whose answers have one call and no id."""

    reason = "function_call"

    def _call_delta(self, part: CallDelta) -> dict[str, Any]:
        named = {} if part.name is None else {"name": part.name}
        return {"function_call": {**named, "arguments": part.arguments}}

    def _joined(self, deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
        calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
        arguments = "".join(call["arguments"] for call in calls)
        return {"function_call": {"name": calls[0]["name"], "arguments": arguments}}
