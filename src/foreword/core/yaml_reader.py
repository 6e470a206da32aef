"""`parse_yaml`: the one reader of YAML, within bounds: values and nothing that expands, runs or is a date.

PyYAML's safe loader still raises ``ValueError`` for ``2024-13-45`` and ``AttributeError`` for ``!!timestamp x``,
recurses as deep as a text is nested, and lets ten lines of aliases stand for gigabytes.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from foreword.errors import ForewordError, UsageError

MAX_NESTING = 64
MAX_DIGITS = 308
MAX_LENGTH = 256 << 10
"""Characters of a text. PyYAML is slow: this, and so many values, take it about half a second each."""

MAX_VALUES = 20_000

_STR, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float"))


class InvalidYaml(ValueError):
    """``reason`` says what is wrong with a text, in its ``line`` (from 1)."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason, self.line = reason, line


def read_yaml(text: str, where: str, *, error: type[ForewordError] = UsageError, mend: str = "write it anew") -> Any:
    """The value of a YAML text. Raises ``error`` for what is none, or beyond the bounds of this file."""
    try:
        return parse_yaml(text)[0]
    except InvalidYaml as found:
        raise error(f"{where} is not YAML ({found.reason}, line {found.line}); {mend}.") from None


def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and the node it was made of, which has the lines; no node for an empty text.

    Numbers are finite and of up to 308 digits, ``5e-3`` is one, and ``1:30`` and dates are texts. Keys are texts as
    spelled (a label may be called ``yes``), each once.

    Raises InvalidYaml, and nothing else.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidYaml(f"it is longer than {MAX_LENGTH} characters", 1)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.YAMLError as error:
        raise InvalidYaml(_reason(error), _line(error, text)) from None
    except (ValueError, OverflowError) as error:  # PyYAML converts escapes and directives without a look at them
        line = 1 if loader is None else loader.line + 1
        raise InvalidYaml(f"a number or a character is out of range: {str(error)[:60]}", line) from None
    finally:
        if loader is not None:
            loader.dispose()


def _line(error: yaml.YAMLError, text: str) -> int:
    """The line of a YAML error, from 1: most have a mark, a forbidden character its position."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark) is not None:
        return min(mark.line, max(text.count("\n") - text.endswith("\n"), 0)) + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        parts = (error.context, error.problem)
        return ", ".join(" ".join(part.split())[:200] for part in parts if part)
    return " ".join(str(getattr(error, "reason", error)).split())


class _Loader(yaml.SafeLoader):
    """A strict loader of one document: see `parse_yaml`."""

    _depth = _values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _error("anchors and aliases are not read; write the value out", event.start_mark)
        if getattr(event, "tag", None) not in (None, "!", _STR):
            raise _error("tags are not read; write the value without one", event.start_mark)
        if self._depth >= MAX_NESTING:
            raise _error(f"lists and mappings are nested deeper than {MAX_NESTING}", event.start_mark)
        self._values += 1
        if self._values > MAX_VALUES:
            raise _error(f"there are more than {MAX_VALUES} values", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key is a text, not a list or a mapping", key.start_mark)
            key.tag = _STR
            if key.value in seen:
                raise _error(f"key {key.value[:40]!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _error("the text has half of a surrogate pair", node.start_mark) from None
        return value

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > MAX_DIGITS:
            raise _error(f"a number has more than {MAX_DIGITS} digits", node.start_mark)
        value = self.construct_yaml_int(node) if node.tag == _INT else self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise _error(f"{node.value[:20]} is no finite number", node.start_mark)
        return value


def _error(sentence: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, sentence, mark)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor(_INT, _Loader.construct_number)
_Loader.add_constructor(_FLOAT, _Loader.construct_number)
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", [*"~nN", ""]),
    (
        "tag:yaml.org,2002:bool",
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        [*"yYnNtTfFoO"],
    ),
    (_INT, r"[-+]?(0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|0[0-7_]*|[1-9][0-9_]*)", [*"-+0123456789"]),
    (
        _FLOAT,
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        [*"-+0123456789."],
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"({_pattern})$"), _first)
