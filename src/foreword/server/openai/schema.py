"""Request bodies of the two completions endpoints. A field is used, or it changes nothing, or it is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Predicate
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foreword.core import MAX_LOGPROBS, Constraint
from foreword.evaluation.sampling_params import CHAT_MAX_TOKENS
from foreword.server.schema import NonEmptyList, TaskRequestBody, example_request, must_be

# Not by `min_length`, which refuses halves of surrogate pairs.
NonEmptyStr = Annotated[str, Predicate(bool)]
TokenIdText = Annotated[str, Field(pattern="^[0-9]+$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Messages = Annotated[NonEmptyList[dict[str, Any]], must_be("a list, not empty, of messages")]


def unsupported(*neutral: object) -> AfterValidator:
    """Refuse an option of OpenAI's API unless it is absent or has a value that changes nothing."""

    def check(value: object) -> object:
        # Compared with their types, because 0 == False in Python and not in JSON.
        if value is None or any(type(value) is type(each) and value == each for each in neutral):
            return value
        raise PydanticCustomError("unsupported_parameter", "is not supported; leave it out")

    return AfterValidator(check)


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
    """vLLM's ``structured_outputs``: one of three."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.json_, self.regex, self.choice].count(None) != 2:
            raise PydanticCustomError("invalid_value", "must hold one of json, regex and choice")
        return self

    @property
    def constraint(self) -> Constraint:
        if self.json_ is not None:
            return Constraint.json_schema(self.json_)
        return Constraint.regex(self.regex) if self.regex is not None else Constraint.choice(self.choice or [])


class GenerationRequest(TaskRequestBody):
    """Options of both completions endpoints.

    ``default_max_tokens`` is the bound of an answer when neither the request nor the task gives one.
    """

    default_max_tokens: ClassVar[int]

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        description="When absent: the task's own default; without one, 0 (greedy) for a learned task, and for the "
        "base model and static prompts what the model's generation_config.json says (also of top_p, top_k, min_p and "
        "repetition_penalty), else 1 as at OpenAI. The base model's entry in /v1/models shows it.",
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 keep all tokens.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[
        NonEmptyStr | Annotated[list[NonEmptyStr], Field(max_length=16)] | None,
        must_be("a text or a list of up to 16 texts, none empty"),
    ] = None
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
        dict[TokenIdText, Bias] | None, must_be("an object of token ids to numbers from -100 to 100")
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
    def max_answer_tokens(self) -> int | None:
        """The bound of the answer that the request asks for, if any."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most probable tokens to report beside every chosen one; ``None`` reports nothing."""
        return None

    @property
    def constraint(self) -> Constraint | None:
        """The form that the answer must have. Raises UsageError for one that is wrong."""
        return self.structured_outputs.constraint if self.structured_outputs is not None else None


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    model_config = example_request(
        {"model": "support", "messages": [{"role": "user", "content": "Where is my order?"}]}
    )

    default_max_tokens = CHAT_MAX_TOKENS

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    store: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None

    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[Any, unsupported([])] = None
    tool_choice: Annotated[Any, unsupported("none", "auto")] = None
    functions: Annotated[Any, unsupported([])] = None
    function_call: Annotated[Any, unsupported("none", "auto")] = None
    modalities: Annotated[Any, unsupported(["text"])] = None
    audio: Annotated[Any, unsupported()] = None
    prediction: Annotated[Any, unsupported()] = None
    reasoning_effort: Annotated[Any, unsupported()] = None
    verbosity: Annotated[Any, unsupported()] = None
    web_search_options: Annotated[Any, unsupported()] = None

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
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def constraint(self) -> Constraint | None:
        return self.response_format.constraint if self.response_format is not None else super().constraint

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``: one of ``prompt`` and ``inputs``."""

    model_config = example_request({"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 16})

    default_max_tokens = 16

    prompt: Annotated[
        str | NonEmptyList[str] | NonEmptyList[int] | NonEmptyList[NonEmptyList[int]] | None,
        must_be("a text, a list of texts, a list of token ids, or a list of such lists"),
    ] = Field(None, description="Stands behind the task's prefix verbatim, without template.")
    inputs: dict[str, Any] | None = Field(None, description="Values for the fields of the task's template.")

    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = Field(None, description="Puts the prompt in front of the answer, and its logprobs if asked.")
    best_of: Annotated[Any, unsupported(1)] = None
    suffix: Annotated[Any, unsupported()] = None

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.inputs is None):
            raise PydanticCustomError(
                "invalid_value",
                "must hold either prompt (text or token ids) or inputs (values for the task's template)",
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Texts and lists of token ids, one an answer."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [each for each in self.prompt or [] if not isinstance(each, int)]
        ids = [each for each in self.prompt or [] if isinstance(each, int)]
        return [ids] if ids else list(texts)
