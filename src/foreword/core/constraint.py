"""`Constraint`: a JSON schema, regular expression or list of choices that a generated answer must match."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.core.json_reader import read_json
from foreword.errors import UsageError


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
        return cls("json_schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole. Raises UsageError for an empty one."""
        if not pattern:
            raise UsageError("the regular expression is empty, so every answer would be; leave it out.")
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of some texts. Raises UsageError if there is none, or an empty one."""
        if not texts or not all(texts):
            raise UsageError("the texts to choose among are none, or one is empty; give at least one character each.")
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    @classmethod
    def tagged(cls, tags: Sequence[Mapping[str, Any]]) -> Constraint:
        """Free text in which a trigger begins JSON; vLLM's structural tags.

        Args:
            tags: objects of ``trigger``, ``begin`` (which starts with the trigger), ``schema`` and ``end``.
        """
        return cls("tagged", json.dumps(list(tags), ensure_ascii=False))
