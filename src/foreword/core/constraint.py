"""`Constraint`: a JSON schema, regular expression or list of choices that a generated answer must match."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.core.json_reader import read_json
from foreword.errors import UsageError

MAX_SCHEMA_BYTES = 256 << 10
"""Of a JSON schema, or of those of all tools; 128 tools may have 2 kB each."""
MAX_CHOICES_BYTES = 1 << 20
MAX_LITERAL_CHARACTERS = 8192
"""Of a regular expression, a choice, a name, an entry of an enum, and all constants of a schema: what an answer must
spell is one expression, every character of which costs time at each token."""

_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_ANNOTATIONS = frozenset({"title", "description", "$comment", "default", "examples"})


@dataclass(frozen=True)
class Constraint:
    """A grammar that the whole of an answer must match; made by one of the four constructors.

    Attributes:
        kind: which language ``text`` is written in.
        text: a JSON schema, a regular expression (Rust's syntax), a JSON list of texts, or one of tagged schemas.
    """

    kind: Literal["json_schema", "regex", "choice", "tagged"]
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Constraint:
        """JSON that a schema, given as an object or as its text, accepts. Raises UsageError for what is no object."""
        if isinstance(schema, str):
            schema = read_json(schema, "the JSON schema", mend="send an object")
        if not isinstance(schema, Mapping):
            raise UsageError(f"the JSON schema is a {type(schema).__name__}; send an object.")
        return cls("json_schema", _dump(schema, "the JSON schema", MAX_SCHEMA_BYTES))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole. Raises UsageError for an empty or a long one."""
        if not pattern:
            raise UsageError("the regular expression is empty, so every answer would be; leave it out.")
        _check_literal(pattern, "the regular expression")
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of some texts. Raises UsageError if there is none, or an empty or a long one."""
        if not texts or not all(texts):
            raise UsageError("the texts to choose among are none, or one is empty; give at least one character each.")
        for text in texts:
            _check_literal(text, "a text to choose")
        return cls("choice", _dump(list(texts), "the list of choices", MAX_CHOICES_BYTES))

    @classmethod
    def tagged(cls, tags: Sequence[Mapping[str, Any]]) -> Constraint:
        """Free text in which a trigger begins JSON; vLLM's structural tags.

        Args:
            tags: objects of ``trigger``, ``begin`` (which starts with the trigger), ``schema`` and ``end``.

        Raises UsageError for long ones.
        """
        return cls("tagged", _dump(list(tags), "the list of tools", MAX_SCHEMA_BYTES))


def _dump(value: Any, where: str, most: int) -> str:
    """Bounded JSON of a schema or a list. Raises UsageError for what is none, or is large."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON ({type(error).__name__}); send another.") from error
    if len(text) > most:
        raise UsageError(f"{where} has {len(text):,} characters, more than {most:,}; shorten it.")
    value = read_json(text, where, mend="send another")  # which bounds nesting and numbers
    if sum(_literal_characters(value, where)) > MAX_LITERAL_CHARACTERS:
        raise UsageError(f"{where} has constants of more than {MAX_LITERAL_CHARACTERS:,} characters; shorten them.")
    return text


def _literal_characters(schema: Any, where: str, named: bool = False) -> Iterator[int]:
    """Characters of every constant in a schema. Raises UsageError for long names, patterns and entries of an enum.

    Args:
        named: the keys are not keywords but names, whose values are schemas.
    """
    if isinstance(schema, list):
        for each in schema:
            yield from _literal_characters(each, where)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        _check_literal(key, f"a name in {where}")
        if named:
            yield from _literal_characters(value, where)
        elif key == "const":
            yield len(json.dumps(value, ensure_ascii=False))
        elif key in ("pattern", "enum"):
            for each in value if isinstance(value, list) else [value]:
                _check_literal(json.dumps(each, ensure_ascii=False), f"{key} in {where}")
        elif key not in _ANNOTATIONS:
            yield from _literal_characters(value, where, key in _SCHEMAS_BY_NAME)


def _check_literal(text: str, where: str) -> None:
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise UsageError(f"{where} has {len(text):,} characters, more than {MAX_LITERAL_CHARACTERS:,}; shorten it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} has half of a surrogate pair, which is no character; send text.") from None
