"""Base of request bodies, and helpers of the OpenAPI page, for all route families."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

T = TypeVar("T")
BodyList = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first wrong item: the errors of a long one would take seconds to write."""
NonEmptyList = Annotated[list[T], Field(min_length=1, fail_fast=True)]
MAX_ERRORS = 64


def must_be(expected: str) -> WrapValidator:
    """Validator whose error is the sentence "must be ``expected``", where pydantic lists every branch of a union."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            if value is None:
                raise
            raise PydanticCustomError("invalid_value", "must be {expected}", {"expected": expected}) from None

    return WrapValidator(check)


def example_request(body: dict[str, Any]) -> ConfigDict:
    """The ``model_config`` of a body whose OpenAPI schema shows this example."""
    return ConfigDict(json_schema_extra={"examples": [body]})


def example_response(
    body: object, status: int = 200, description: str = "The answer.", *, streamed: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route whose OpenAPI entry shows this body; ``streamed`` adds server-sent events."""
    content = {"application/json": {"example": body}} | ({"text/event-stream": {}} if streamed else {})
    return {status: {"description": description, "content": content}}


class TaskRequestBody(BaseModel):
    """Base of every body that names a task. Unknown fields are refused, and the last five change nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="The base model, a task, or task@version.")
    task_id: Annotated[int | str | None, must_be("a task's name or number")] = Field(
        None, description="Names the task as `model` does; the two must not contradict each other."
    )
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="wrap")
    @classmethod
    def _bound_errors(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(value)
        except ValidationError as error:
            if (count := error.error_count()) <= MAX_ERRORS:
                raise
            raise PydanticCustomError(
                "invalid_value", "is wrong in {count} places; send the documented fields", {"count": count}
            ) from None

    @property
    def user_id(self) -> str | None:
        """Whom the request is for, by ``user`` or the newer fields in its place."""
        names = (self.user, self.safety_identifier, self.prompt_cache_key)
        return next((name for name in names if isinstance(name, str) and name), None)
