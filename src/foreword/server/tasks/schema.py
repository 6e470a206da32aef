"""Bodies of ``/v1/tasks``, and the responses that the OpenAPI page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foreword.bank.time_to_live import parse_duration
from foreword.errors import UsageError
from foreword.evaluation.sampling_params import generation_defaults
from foreword.server.schema import example_response, must_be


def _check_duration(text: str) -> str:
    try:
        parse_duration(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text


class TaskRequest(BaseModel):
    """``POST /v1/tasks``: one of ``system`` and ``prompt``."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"name": "support", "system": "You answer for a shop. Be brief."}]},
    )

    name: str = Field(description="Lower-case letters, digits, dot, dash and underscore; 64 characters at most.")
    system: str | None = Field(None, description="A system turn that stands in front of every conversation.")
    prompt: str | None = Field(None, description="Text that stands in front of every prompt, without chat template.")
    replace: bool | None = Field(None, description="Publish over a task that belongs to another model.")
    ttl: Annotated[
        Annotated[int, Field(gt=0)] | Annotated[str, AfterValidator(_check_duration)] | None,
        must_be("a number of seconds above 0, or a text such as 7d"),
    ] = Field(None, description="Expires after this time without a use: seconds, or a text such as `7d`.")
    temperature: float | None = Field(None, description="The task's own default, as are the next four.")
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None

    @property
    def generation(self) -> dict[str, Any]:
        """The task's own generation defaults. Raises UsageError for a wrong value."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return generation_defaults(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_tokens=self.max_tokens, stop=stop
        )

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if (self.system is None) == (self.prompt is None):
            raise PydanticCustomError("invalid_value", "must hold either system or prompt")
        return self

    @property
    def ttl_seconds(self) -> int | None:
        return parse_duration(self.ttl) if isinstance(self.ttl, str) else self.ttl


class RollbackRequest(BaseModel):
    """``POST /v1/tasks/{name}/rollback``."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"version": "0001"}]})

    version: str | None = Field(None, description="A version or its number; the one before without.")


UPLOAD_FIELDS = ("name", "template", "verbalizer", "replace", "generation", "ttl")
"""Form fields of a multipart upload, beside the file ``prefix``."""

_UPLOAD_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["name", "prefix"],
    "properties": {
        "name": {"type": "string"},
        "prefix": {"type": "string", "format": "binary", "description": "A prefix.safetensors file."},
        "template": {"type": "string"},
        "verbalizer": {"type": "string", "description": "A JSON object of labels and words."},
        "replace": {"type": "boolean"},
        "ttl": {"type": "string", "description": "Expires after this time without a use, such as `7d`."},
        "generation": {
            "type": "string",
            "description": "A JSON object of the task's own temperature, top_p, top_k, max_tokens and stop.",
        },
    },
}
PUBLISH_BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": TaskRequest.model_json_schema()},
            "multipart/form-data": {"schema": _UPLOAD_SCHEMA},
        },
    }
}
"""The ``openapi_extra`` of ``POST /v1/tasks``, whose body FastAPI cannot describe by itself."""

_VERSION = "0001-3f9a0c1b2d4e"
_TASK = {
    "object": "task",
    "name": "support",
    "current": _VERSION,
    "split": None,
    "version": _VERSION,
    "kind": "system",
    "method": "static",
    "template": None,
    "labels": [],
    "generation": {},
    "bytes": 23040000,
    "created": "2026-01-31T09:30:00Z",
    "ttl": 604800,
    "metrics": None,
    "expires": "2026-02-07T17:54:00Z",
    "expired": False,
    "pinned": False,
    "resident": True,
    "versions": [_VERSION],
}
TASK_RESPONSE = example_response(_TASK)
TASK_LIST_RESPONSE = example_response({"object": "list", "data": [_TASK]})
PUBLISHED_RESPONSE = example_response(_TASK, 201, "The new version.")
