"""Items of ``/v1/responses`` as chat completions spell them: messages, calls and their outputs, tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.errors import RequestError, UnsupportedOption

_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def to_messages(items: str | Sequence[Mapping[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of an ``input``; calls are joined to the assistant's message in front of them.

    Raises RequestError for a malformed item, UnsupportedOption for one of a kind that is not built.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for index, item in enumerate(items):
        _add(messages, f"input[{index}]", item)
    return messages


def to_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function in chat's shape; another tool as it is, which chat refuses by name."""
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    known = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in known if name in tool}}


def to_tool_choice(choice: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """A choice in chat's shape."""
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function" and "function" not in choice:
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools" and "allowed_tools" not in choice:
        tools = choice.get("tools")
        named = [to_tool(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": named}}
    return dict(choice)


def _add(messages: list[dict[str, Any]], where: str, item: Mapping[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(f"{where}.content", item.get("content"))})
    elif kind == "function_call":
        call = {
            "id": _text(where, item, "call_id"),
            "type": "function",
            "function": {"name": _text(where, item, "name"), "arguments": _text(where, item, "arguments")},
        }
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(f"{where}.output", item.get("output"))
        messages.append({"role": "tool", "tool_call_id": _text(where, item, "call_id"), "content": content})
    elif kind == "item_reference":
        raise UnsupportedOption(f"{where}: references are not supported: nothing is stored here; send the item itself.")
    else:
        raise UnsupportedOption(
            f"{where}: items of type {str(kind)[:40]!r} are not supported; send messages, function_call and "
            "function_call_output."
        )


def _content(where: str, content: object) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RequestError(f"{where} must be a text, or a list, not empty, of parts; send the text.")
    return [_part(f"{where}[{index}]", part) for index, part in enumerate(content)]


def _part(where: str, part: object) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise RequestError(f'{where} must be an object such as {{"type": "input_text", "text": "..."}}.')
    if kind not in _TEXTS:
        raise UnsupportedOption(f"{where}: parts of type {kind[:40]!r} are not supported; send only text.")
    key = _TEXTS[kind]
    return {"type": key, key: _text(where, part, key)}


def _text(where: str, item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{key} must be a text, found {type(value).__name__}; send it.")
    return value
