"""What a request body may hold. A field is used, or it changes nothing, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foreword.core import MOST_LOGPROBS, Constraint
from foreword.evaluation.sampling_params import CHAT_MAX_TOKENS


def only(*neutral: object) -> AfterValidator:
    """Accept an option that is not supported, if it is absent or has a value that changes nothing."""

    def check(value: object) -> object:
        # Compared with their types, because 0 == False in Python and not in JSON.
        if value is None or any(type(value) is type(each) and value == each for each in neutral):
            return value
        raise PydanticCustomError("unsupported_parameter", "is not supported; leave it out")

    return AfterValidator(check)


def shaped(expected: str, fits: Callable[[object], bool]) -> BeforeValidator:
    """Say what is expected in one sentence, where pydantic would list every branch of a union."""

    def check(value: object) -> object:
        if value is None or fits(value):
            return value
        raise PydanticCustomError("invalid_value", "must be {expected}", {"expected": expected})

    return BeforeValidator(check)


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    """A test for a list, not empty, of values that pass a test."""
    return lambda value: isinstance(value, list) and bool(value) and all(map(fits, value))


def is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_name(value: object) -> bool:
    return isinstance(value, str) or is_int(value)


def _is_stop(value: object) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= 16 and all(isinstance(t, str) and t for t in texts)


def _is_bias(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(token, str)
        and token.isascii()
        and token.isdigit()
        and isinstance(bias, int | float)
        and not isinstance(bias, bool)
        and -100 <= bias <= 100
        for token, bias in value.items()
    )


def _is_prompt(value: object) -> bool:
    ids = is_list_of(is_int)
    return isinstance(value, str) or any(is_list_of(fits)(value) for fits in (is_text, is_int, ids))


def shown(example: dict[str, Any]) -> ConfigDict:
    """The OpenAPI page shows this example."""
    return ConfigDict(json_schema_extra={"examples": [example]})


class Body(BaseModel):
    """What all bodies share: which task is asked, and that nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="The base model, a task, or task@version.")
    task_id: Annotated[int | str | None, shaped("a task's name or number", _is_name)] = Field(
        None, description="Names the task as `model` does; the two must not contradict each other."
    )
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Any = None


class JsonSchema(BaseModel):
    """OpenAI's ``json_schema``; the schema is always enforced, so ``strict`` changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Any = None
    description: Any = None
    strict: Any = None
    form: dict[str, Any] = Field(alias="schema")


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
            return Constraint.json_schema(self.json_schema.form)
        return Constraint.json_schema({"type": "object"}) if self.type == "json_object" else None


class StructuredOutputs(BaseModel):
    """vLLM's ``structured_outputs``: one of three."""

    model_config = ConfigDict(extra="forbid", strict=True)

    form: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.form, self.regex, self.choice].count(None) != 2:
            raise PydanticCustomError("invalid_value", "must hold one of json, regex and choice")
        return self

    @property
    def constraint(self) -> Constraint:
        if self.form is not None:
            return Constraint.json_schema(self.form)
        return Constraint.regex(self.regex) if self.regex is not None else Constraint.choice(self.choice or [])


class Generation(Body):
    """Options of both completions endpoints.

    ``usual_tokens`` is the bound of an answer when neither the request nor the task gives one.
    """

    usual_tokens: ClassVar[int]

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        description="When absent: the task's own default; without one, 0 (greedy) for a learned task, and 1 as "
        "at OpenAI for the base model and for static prompts.",
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 keep all tokens.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[str | list[str] | None, shaped("a text or a list of up to 16 texts, none empty", _is_stop)] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = Field(
        None,
        description="Adds `token_ids` and `prompt_token_ids` to every choice; learned positions have no ids.",
    )

    n: int | None = Field(None, ge=1, le=128, description="Answers to every prompt; seeds count up from `seed`.")
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[
        dict[str, float] | None, shaped("an object of token ids to numbers from -100 to 100", _is_bias)
    ] = None
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's: json, regex or choice.")

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value", "is wrong: stream_options is only for stream: true; leave it out"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def answer_tokens(self) -> int | None:
        """The bound of the answer that the request asks for, if any."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most probable tokens to report beside every chosen one; ``None`` reports nothing."""
        return None

    @property
    def constraint(self) -> Constraint | None:
        """The form that the answer must have. Raises UsageError for one that is wrong."""
        return self.structured_outputs.constraint if self.structured_outputs is not None else None


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    model_config = shown({"model": "support", "messages": [{"role": "user", "content": "Where is my order?"}]})

    usual_tokens = CHAT_MAX_TOKENS

    messages: Annotated[
        list[dict[str, Any]],
        shaped("a list, not empty, of messages", is_list_of(lambda v: isinstance(v, dict))),
    ]
    max_completion_tokens: int | None = Field(None, ge=1)
    store: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None

    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only()] = None
    verbosity: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise PydanticCustomError(
                "invalid_value", "is wrong: max_tokens and max_completion_tokens differ; send one of them"
            )
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("invalid_value", "is wrong: top_logprobs is only for logprobs: true; send both")
        if self.response_format is not None and self.structured_outputs is not None:
            raise PydanticCustomError(
                "invalid_value", "is wrong: response_format and structured_outputs both give a form; send one of them"
            )
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def constraint(self) -> Constraint | None:
        return self.response_format.constraint if self.response_format is not None else super().constraint

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Generation):
    """``POST /v1/completions``: one of ``prompt`` and ``inputs``."""

    model_config = shown({"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 16})

    usual_tokens = 16

    prompt: Annotated[
        str | list[str] | list[int] | list[list[int]] | None,
        shaped("a text, a list of texts, a list of token ids, or a list of such lists", _is_prompt),
    ] = Field(None, description="Stands behind the task's prefix verbatim, without template.")
    inputs: dict[str, Any] | None = Field(None, description="Values for the fields of the task's template.")

    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = Field(None, description="Puts the prompt in front of the answer, and its logprobs if asked.")
    best_of: Annotated[Any, only(1)] = None
    suffix: Annotated[Any, only()] = None

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.inputs is None):
            raise PydanticCustomError(
                "invalid_value",
                "must hold either prompt (text or token ids) or inputs (values for the task's template)",
            )
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Texts and lists of token ids, one an answer."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [each for each in self.prompt or [] if not isinstance(each, int)]
        ids = [each for each in self.prompt or [] if isinstance(each, int)]
        return [ids] if ids else list(texts)


def _is_tagged(value: object) -> bool:
    return _is_input(value) or (isinstance(value, list) and bool(value) and all(isinstance(w, str) for w in value))


def _is_input(value: object) -> bool:
    return isinstance(value, str | dict)


class TagRequest(Body):
    """``POST /v1/tag``."""

    model_config = shown({"model": "slots", "input": ["play some jazz"]})

    input: Annotated[
        str | dict[str, Any] | list[str | list[str] | dict[str, Any]],
        shaped(
            "a text, an object of field values, or a list of texts, lists of words or objects, not empty",
            lambda value: _is_input(value) or is_list_of(_is_tagged)(value),
        ),
    ] = Field(description="A text is cut into words at white space; a list inside the list holds words.")

    @property
    def inputs(self) -> list[str | list[str] | dict[str, Any]]:
        return self.input if isinstance(self.input, list) else [self.input]


class ClassifyRequest(Body):
    """``POST /v1/classify``."""

    model_config = shown({"model": "sentiment", "input": ["A fine film.", {"text": "Dull."}]})

    input: Annotated[
        str | dict[str, Any] | list[str | dict[str, Any]],
        shaped(
            "a text, an object of field values, or a list of these, not empty",
            lambda value: _is_input(value) or is_list_of(_is_input)(value),
        ),
    ] = Field(description="A text fills the template's only field; an object names the fields.")

    @property
    def inputs(self) -> list[str | dict[str, Any]]:
        return self.input if isinstance(self.input, list) else [self.input]


class TokenizeRequest(Body):
    """``POST /v1/tokenize``: one of ``prompt``, ``messages`` and ``inputs``."""

    model_config = shown({"model": "support", "messages": [{"role": "user", "content": "Hello"}]})

    prompt: str | None = None
    messages: Annotated[
        list[dict[str, Any]] | None,
        shaped("a list, not empty, of messages", is_list_of(lambda v: isinstance(v, dict))),
    ] = None
    inputs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.prompt, self.messages, self.inputs].count(None) != 2:
            raise PydanticCustomError("invalid_value", "must hold one of prompt, messages and inputs")
        return self


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

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if (self.system is None) == (self.prompt is None):
            raise PydanticCustomError("invalid_value", "must hold either system or prompt")
        return self


class RollbackRequest(BaseModel):
    """``POST /v1/tasks/{name}/rollback``."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"version": "0001"}]})

    version: str | None = Field(None, description="A version or its number; the one before without.")
