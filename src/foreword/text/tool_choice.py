"""`ToolChoice`: which tools a request offers and whether one must be called, and what follows for its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from foreword.core import Constraint
from foreword.core.json_reader import parse_json
from foreword.errors import RequestError, UnsupportedOption
from foreword.text.tool_formats import ToolFormat
from foreword.text.tool_reader import FreeToolReader, NamedToolReader, ToolListReader, ToolReader
from foreword.text.tools import Tool, parse_tools

MAX_FORCED_CALLS = 8
"""Calls in one answer where the model must call; it could go on for ever."""


@dataclass(frozen=True)
class AnswerPlan:
    """How an answer with tools is generated and read.

    Attributes:
        make_reader: a reader for one answer.
        prefix: a beginning of the answer that stands in the prompt.
        constraint: the form of the answer, or ``None``.
        stop: texts that end it, besides the request's.
        marks: texts that the reader needs to see, even if they are special tokens.
    """

    make_reader: Callable[[], ToolReader]
    prefix: str = ""
    constraint: Constraint | None = None
    stop: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolChoice:
    """OpenAI's ``tools``, ``tool_choice`` and ``parallel_tool_calls``, resolved.

    Attributes:
        tools: that are offered to the model; none where it must not call.
        mode: ``auto``: the model chooses; ``required``: it calls; ``named``: it calls the only tool.
        parallel: whether an answer may have several calls.
    """

    tools: tuple[Tool, ...]
    mode: Literal["auto", "required", "named"]
    parallel: bool

    @classmethod
    def parse(
        cls, tools: Sequence[object] | None, choice: object = None, parallel: bool | None = None, where: str = "tools"
    ) -> ToolChoice:
        """Raises RequestError or UnsupportedOption for what is none."""
        offered = parse_tools(tools, where)
        several = parallel is not False
        if choice in (None, "auto"):
            return cls(offered, "auto", several)
        if choice == "none":
            return cls((), "auto", several)
        if not offered:
            raise RequestError(f"tool_choice {_shown(choice)} needs tools; send them, or leave it out.")
        if choice == "required":
            return cls(offered, "required", several)
        if isinstance(choice, Mapping) and choice.get("type") == "function":
            return cls((_named(offered, choice, "tool_choice"),), "named", several)
        if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
            return _allowed(offered, choice, several)
        if isinstance(choice, Mapping) and choice.get("type") == "custom":
            raise UnsupportedOption("tool_choice of type 'custom' is not supported; describe the tool as a function.")
        raise RequestError(
            f"tool_choice is {_shown(choice)}; send none, auto, required, "
            '{"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", ...}.'
        )

    @property
    def definitions(self) -> list[Mapping[str, Any]] | None:
        """The tools as chat templates take them."""
        return [tool.definition for tool in self.tools] or None

    def plan(self, calls: ToolFormat, response: Constraint | None = None) -> AnswerPlan:
        """How to generate and read an answer to a prompt that offers the tools.

        Args:
            calls: the format that the prompt teaches.
            response: the form that an answer without calls must have.

        Raises UnsupportedOption for a response's form that cannot stand beside calls.
        """
        if self.mode == "named":
            (tool,) = self.tools
            # Without the space, which would begin the first token of the answer.
            prefix = calls.opening.replace("NAME", tool.name).rstrip()
            return AnswerPlan(
                partial(NamedToolReader, tool.name), prefix, Constraint.json_schema(_object_schema(tool.parameters))
            )
        if self.mode == "required" or response is not None:
            return AnswerPlan(ToolListReader, constraint=Constraint.json_schema(self._list_schema(response)))
        strict = [tool for tool in self.tools if tool.strict]
        return AnswerPlan(
            partial(FreeToolReader, calls, [tool.name for tool in self.tools], self.parallel),
            constraint=Constraint.tagged([_tag(calls, tool) for tool in self.tools]) if strict else None,
            stop=() if self.parallel or calls.end is None else (calls.end,),
            marks=calls.marks,
        )

    def _list_schema(self, response: Constraint | None) -> dict[str, Any]:
        """The schema of a list of calls, or of the response's own form, which must be an object."""
        path = "#/items/anyOf" if response is None else "#/anyOf/0/items/anyOf"
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": _moved(_object_schema(tool.parameters), f"{path}/{index}/properties/arguments"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for index, tool in enumerate(self.tools)
        ]
        most = MAX_FORCED_CALLS if self.parallel else 1
        listed = {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": calls}}
        if response is None:
            return listed
        schema = parse_json(response.text) if response.kind == "json_schema" else {}
        if schema.get("type") != "object":
            raise UnsupportedOption(
                "an answer is either calls of tools or JSON whose schema has type object; send such a schema, or "
                "tool_choice: none."
            )
        return {"anyOf": [listed, _moved(schema, "#/anyOf/1")]}


def _tag(calls: ToolFormat, tool: Tool) -> dict[str, Any]:
    """A call as a part of free text; of a tool that is not strict, any arguments."""
    schema = _object_schema(tool.parameters) if tool.strict else {"type": "object"}
    opening = calls.opening.replace("NAME", tool.name)
    return {"trigger": calls.trigger, "begin": opening, "schema": schema, "end": calls.closing}


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:80]


def _named(tools: Sequence[Tool], choice: Mapping[str, Any], where: str) -> Tool:
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        names = ", ".join(tool.name for tool in tools)
        raise RequestError(f"{where} names {_shown(name)}, which is not among the tools; use one of {names}.")
    return tool


def _allowed(tools: Sequence[Tool], choice: Mapping[str, Any], parallel: bool) -> ToolChoice:
    allowed = choice.get("allowed_tools", choice)
    listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(listed, Sequence) or not listed:
        raise RequestError('tool_choice.allowed_tools must hold a mode, "auto" or "required", and a list of tools.')
    where = "tool_choice.allowed_tools.tools"
    names = {_named(tools, each if isinstance(each, Mapping) else {}, where).name for each in listed}
    return ToolChoice(tuple(tool for tool in tools if tool.name in names), mode, parallel)


def _object_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of arguments: an object even where it does not say so, with no arguments that it does not know."""
    return _closed({"type": "object", **schema})


def _closed(schema: Any) -> Any:
    """A schema whose objects have no other properties than it lists, unless it says something of those.

    A function has no use for further arguments, and a small model could go on inventing them.
    """
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: value if key in _DATA_KEYWORDS else _closed(value) for key, value in schema.items()}
    lists = schema.get("type") == "object" and isinstance(schema.get("properties"), Mapping)
    return {**found, "additionalProperties": False} if lists and not _OPEN_KEYWORDS & set(schema) else found


_DATA_KEYWORDS = frozenset({"const", "enum", "default", "examples"})
_OPEN_KEYWORDS = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"}
)


def _moved(schema: Any, path: str) -> Any:
    """A schema that stands at ``path`` of another one, with its references to itself."""
    if isinstance(schema, Mapping):
        return {
            key: path + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, path)
            for key, value in schema.items()
        }
    return [_moved(each, path) for each in schema] if isinstance(schema, list) else schema
