"""`Tool`: a function that a model may call, and `ToolCall`: one call of it, both in OpenAI's shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core.json_reader import parse_json
from foreword.errors import RequestError, UnsupportedOption

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: of the function.
        parameters: JSON schema of its arguments, an object.
        strict: calls must fit the schema even where the model chooses freely whether to call.
        definition: ``{"type": "function", "function": {...}}``, as chat templates take it.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    definition: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A call: the name of the function, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


def parse_tools(tools: Sequence[object] | None, where: str = "tools") -> tuple[Tool, ...]:
    """OpenAI's ``tools``. Raises RequestError for what is none, UnsupportedOption for tools that are no functions."""
    if tools is None:
        return ()
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise RequestError(f'{where} must be a list of {{"type": "function", "function": {{...}}}}; send a list.')
    found = tuple(_tool(f"{where}[{index}]", tool) for index, tool in enumerate(tools))
    names = Counter(tool.name for tool in found)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise RequestError(f"{where}: the function {twice!r} is there twice; give each a name of its own.")
    return found


def _tool(where: str, tool: object) -> Tool:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedOption(
            f"{where}: tools of type {kind!r} run at OpenAI and not here; describe a function and run it yourself."
        )
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestError(f'{where} must be {{"type": "function", "function": {{"name": ...}}}}; describe a function.')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.function.name is {str(name)[:40]!r}; name it with up to 128 letters, digits, _, -, . and :."
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{where}.function.description must be a text; describe the function in words.")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"{where}.function.parameters must be a JSON schema; send an object.")
    if parameters and parameters.get("type", "object") != "object":
        raise RequestError(
            f"{where}.function.parameters has type {str(parameters['type'])[:40]!r}; arguments are an object, so write "
            "type: object."
        )
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError(f"{where}.function.strict must be true or false.")
    schema = dict(parameters) if parameters else {"type": "object", "properties": {}}
    shown = {"name": name, "description": description or "", "parameters": schema}
    return Tool(name, schema, bool(strict), {"type": "function", "function": shown})


def parse_arguments(where: str, arguments: object) -> dict[str, Any]:
    """Arguments of a call as an object; the empty text stands for none.

    Raises RequestError for what is no JSON object.
    """
    value = arguments
    if isinstance(arguments, str):
        try:
            value = parse_json(arguments) if arguments.strip() else {}
        except ValueError:
            value = None
    if value is None and arguments is None:
        value = {}
    if not isinstance(value, Mapping):
        found = "what is none" if value is None else type(value).__name__  # and not what was said
        raise RequestError(f"{where} must be the text of a JSON object, found {found}; write it anew.")
    return dict(value)
