"""The formats in which families of models write calls of tools: one table, and which row a chat template follows.

A row says how calls are told from other text, read, and begun for the model. Sources: the chat templates of Hermes 2
Pro, Qwen2.5, Qwen3, Qwen3-Coder, SmolLM2 and SmolLM3, Llama 3.1 to 3.3, Mistral 7B v0.3 to Mistral Small 3.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.core.json_reader import parse_json, parse_json_at
from foreword.text.tools import ToolCall


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes calls.

    Attributes:
        name: of the family.
        written: a regular expression of a written call; ``NAME`` stands for the function's name.
        marks: texts that begin calls.
        end: the text that ends them; without one they go on to the end of the answer.
        whole_answer: an answer may also be calls from its first character on, which is then ``{``.
        parse: reads what stands between mark and end. Raises ValueError for anything else.
        opening, closing: what the model writes around the arguments of a call; ``NAME`` stands for the name.
        trigger: the beginning of ``opening`` from which on an answer is a call.
    """

    name: str
    written: str
    marks: tuple[str, ...]
    end: str | None
    whole_answer: bool
    parse: Callable[[str], list[ToolCall]]
    opening: str
    closing: str
    trigger: str

    def writes(self, name: str, rendered: str) -> bool:
        """Whether a rendered conversation has a call of the function in this format."""
        return re.search(self.written.replace("NAME", re.escape(name)), rendered) is not None


def _json_values(text: str) -> Iterator[Any]:
    """JSON values one behind the other; white space, commas and semicolons may stand between them."""
    text, at = text.strip(), 0
    while at < len(text):
        value, at = parse_json_at(text, at)
        yield value
        while text[at : at + 1] in tuple(" \n\r\t,;"):
            at += 1


def _json_call(value: Any) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call is an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them
        arguments = parse_json(arguments)
    if not isinstance(arguments, dict) or not set(value) <= {"name", "arguments", "parameters", "id", "type"}:
        raise ValueError("the arguments of a call are an object")
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _json_calls(text: str) -> list[ToolCall]:
    values = [each for value in _json_values(text) for each in (value if isinstance(value, list) else [value])]
    if not values:
        raise ValueError("there is no call")
    return [_json_call(value) for value in values]


def _hermes_calls(text: str) -> list[ToolCall]:
    """JSON, or Qwen3-Coder's tags."""
    return _tagged_calls(text) if text.lstrip().startswith("<function=") else _json_calls(text)


def _tagged_calls(text: str) -> list[ToolCall]:
    match = re.fullmatch(r"\s*<function=([^>\s]{1,128})>(.*)</function>\s*", text, re.DOTALL)
    if match is None:
        raise ValueError("a call is <function=...>...</function>")
    # Cut at the ends first: from every unclosed parameter a lazy search would read on to the end of the answer.
    parts = [re.search(_PARAMETER, part, re.DOTALL) for part in match[2].split("</parameter>")[:-1]]
    given = [(part[1], part[2]) for part in parts if part is not None]
    return [ToolCall(match[1], json.dumps({key: _value(value) for key, value in given}, ensure_ascii=False))]


_PARAMETER = r"<parameter=([^>\s]{1,128})>\n?(.*?)\n?\Z"


def _value(text: str) -> Any:
    """A tagged value; what is JSON but no text is written as JSON there."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _mistral_calls(text: str) -> list[ToolCall]:
    """A JSON list (to v0.3), or name and arguments behind a mark for each call (from v11 on)."""
    if text.lstrip().startswith(("[{", "{")):
        return _json_calls(text)
    calls = []
    for part in text.split("[TOOL_CALLS]"):
        match = re.match(r"\s*([\w.:-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)", part)
        if match is None:
            raise ValueError("a call is a name and its arguments")
        (arguments,) = _json_values(part[match.end() :])
        calls.append(_json_call({"name": match[1], "arguments": arguments}))
    return calls


HERMES = ToolFormat(
    "hermes",
    r'<tool_call>\s*\[?\{"name":\s*"NAME",\s*"arguments":',
    ("<tool_call>",),
    "</tool_call>",
    False,
    _hermes_calls,
    '<tool_call>\n{"name": "NAME", "arguments": ',
    "}\n</tool_call>",
    "<tool_call>",
)
TOOL_FORMATS: Sequence[ToolFormat] = (
    HERMES,
    # Read alike, and asked for in Hermes' way where a call is forced.
    replace(HERMES, name="qwen3_coder", written=r"<tool_call>\s*<function=NAME>"),
    ToolFormat(
        "mistral",
        r'\[TOOL_CALLS\]\s*\[\{"name":\s*"NAME"',
        ("[TOOL_CALLS]",),
        None,
        False,
        _mistral_calls,
        '[TOOL_CALLS] [{"name": "NAME", "arguments": ',
        "}]",
        "[TOOL_CALLS]",
    ),
    ToolFormat(
        "mistral_v11",
        r"\[TOOL_CALLS\]\s*NAME\s*[\[{]",
        ("[TOOL_CALLS]",),
        None,
        False,
        _mistral_calls,
        "[TOOL_CALLS]NAME[ARGS]",
        "",
        "[TOOL_CALLS]",
    ),
    ToolFormat(
        "llama3",
        r'\{"name":\s*"NAME",\s*"parameters":',
        ("<|python_tag|>",),
        None,
        True,
        _json_calls,
        '{"name": "NAME", "parameters": ',
        "}",
        '{"name": "',
    ),
)


def written_format(name: str, rendered: str) -> ToolFormat | None:
    """The format of the call of a function in a rendered conversation."""
    return next((row for row in TOOL_FORMATS if row.writes(name, rendered)), None)
