"""Options that give an answer's form: OpenAI's ``response_format`` and vLLM's ``structured_outputs``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foreword.core import Constraint
from foreword.server.openai.neutral_options import unsupported
from foreword.server.schema import BodyList

_GRAMMAR = "grammars are written in as many ways as there are engines; write a JSON schema, a regex or a choice"


class JsonSchema(BaseModel):
    """OpenAI's ``json_schema``; the schema is always enforced, so ``strict`` changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Any = None
    description: Any = None
    strict: Any = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise PydanticCustomError("invalid_value", "must hold json_schema if that is its type, else not")
        return self

    @property
    def constraint(self) -> Constraint | None:
        if self.json_schema is not None:
            return Constraint.json_schema(self.json_schema.schema_)
        return Constraint.json_schema({"type": "object"}) if self.type == "json_object" else None


class StructuredOutputs(BaseModel):
    """vLLM's ``structured_outputs``: one of four."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: BodyList[str] | None = None
    json_object: bool | None = None
    grammar: Annotated[Any, unsupported(why=_GRAMMAR)] = None
    structural_tag: Annotated[Any, unsupported(why="send tools")] = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: Annotated[Any, unsupported(False, why="say additionalProperties in the schema")] = (
        None
    )
    whitespace_pattern: Annotated[Any, unsupported(why="white space in JSON is fixed")] = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.json_, self.regex, self.choice, self.json_object or None].count(None) != 3:
            raise PydanticCustomError("invalid_value", "must hold one of json, regex, choice and json_object: true")
        return self

    @property
    def constraint(self) -> Constraint:
        if self.json_ is not None:
            return Constraint.json_schema(self.json_)
        if self.json_object:
            return Constraint.json_schema({"type": "object"})
        return Constraint.regex(self.regex) if self.regex is not None else Constraint.choice(self.choice or [])
