"""OpenAI's messages, checked and brought into the one shape that chat templates of Transformers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.errors import RequestError, UnsupportedOption
from foreword.text.tools import parse_arguments

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ROLE_IN_TEMPLATES = {"developer": "system", "function": "tool"}
_REASONING_KEYS = ("reasoning_content", "reasoning")

Turn = dict[str, Any]
"""``role`` and ``content`` (a text), and where they are given ``name``, ``tool_call_id``, ``reasoning_content`` and
``tool_calls``, whose arguments are objects."""


def validate_messages(messages: Sequence[Mapping[str, object]]) -> list[Turn]:
    """Check messages and reduce them to what chat templates know.

    Content may be a string or OpenAI's list of text parts; null is empty. ``developer`` is OpenAI's newer name of
    ``system``, ``function`` and ``function_call`` its older ones of ``tool`` and ``tool_calls``.

    Raises RequestError for what is not a message, UnsupportedOption for images and audio.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a non-empty list; send at least one with role 'user'.")
    return [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _turn(where: str, message: Mapping[str, object]) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{where}: role is {role!r}; use one of {', '.join(_ROLES)}.")
    if message.get("audio") is not None:
        raise UnsupportedOption(f"{where}: audio is not supported, since the model reads text; send its text.")
    turn: Turn = {"role": _ROLE_IN_TEMPLATES.get(role, role), "content": _content(where, role, message)}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            turn[key] = str(message[key])
    reasoning = next((message[key] for key in _REASONING_KEYS if isinstance(message.get(key), str)), None)
    if reasoning is not None:
        turn["reasoning_content"] = reasoning
    if calls := _tool_calls(where, message):
        if role != "assistant":
            raise RequestError(f"{where}: tool_calls are in a turn of role {role!r}; only the assistant calls tools.")
        turn["tool_calls"] = calls
    return turn


def _tool_calls(where: str, message: Mapping[str, object]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(f"{where}: tool_calls must be a list of calls; send a list.")
    found = [_tool_call(f"{where}.tool_calls[{index}]", call) for index, call in enumerate(calls)]
    if (function := message.get("function_call")) is not None:
        found.append(_function_call(f"{where}.function_call", None, function))
    return found


def _tool_call(where: str, call: object) -> dict[str, Any]:
    if not isinstance(call, Mapping) or call.get("type", "function") not in ("function", None):
        raise RequestError(f'{where} must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}.')
    return _function_call(f"{where}.function", call.get("id"), call.get("function"))


def _function_call(where: str, call_id: object, function: object) -> dict[str, Any]:
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RequestError(f'{where} must be {{"name": "...", "arguments": "{{...}}"}}; name the function.')
    arguments = parse_arguments(f"{where}.arguments", function.get("arguments"))
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call if call_id is None else {"id": str(call_id), **call}


def _content(where: str, role: str, message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and ("content" in message or role == "assistant"):
        return ""
    if isinstance(content, list) and content:
        return "".join(_part(f"{where}.content[{index}]", part) for index, part in enumerate(content))
    raise RequestError(f"{where}: content must be a string or a non-empty list of text parts; send the text.")


def _part(where: str, part: object) -> str:
    if not isinstance(part, Mapping):
        raise RequestError(f'{where} must be an object; write {{"type": "text", "text": "..."}}.')
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise UnsupportedOption(f"{where}: parts of type {kind!r} are not supported; send only text.")
    text = part.get(str(kind))
    if not isinstance(text, str):
        raise RequestError(f'{where}: {kind} must be a string; write {{"type": "{kind}", "{kind}": "..."}}.')
    return text
