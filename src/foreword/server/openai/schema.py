"""Request bodies of the two completions endpoints. A field is used, or it changes nothing, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Predicate
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from foreword.core import MAX_LOGPROBS, Constraint
from foreword.evaluation.sampling_params import CHAT_MAX_TOKENS
from foreword.server.openai.neutral_options import NeutralChatOptions, NeutralOptions, NeutralTextOptions
from foreword.server.openai.response_form import ResponseFormat, StructuredOutputs
from foreword.server.schema import BodyList, NonEmptyList, example_request, must_be
from foreword.text.tool_choice import ToolChoice

# Not by `min_length`, which refuses halves of surrogate pairs.
NonEmptyStr = Annotated[str, Predicate(bool)]
TokenIdText = Annotated[str, Field(pattern="^[0-9]+$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
MinusOneIsNone = BeforeValidator(lambda value: None if type(value) is int and value == -1 else value)
"""-1 stands for "not given" in llama.cpp, vLLM and ollama."""
CacheSalt = Annotated[
    Annotated[str, Predicate(lambda salt: 0 < len(salt) <= 256)] | None, must_be("a text of 1 to 256 characters")
]
Messages = Annotated[NonEmptyList[dict[str, Any]], must_be("a list, not empty, of messages")]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="An event with the usage, behind all others.")
    include_obfuscation: bool | None = Field(None, description="Random letters in every event, to hide its length.")
    continuous_usage_stats: bool | None = Field(None, description="vLLM's: the usage so far in every event.")


class GenerationRequest(NeutralOptions):
    """Options of both completions endpoints.

    ``default_max_tokens`` is the bound of an answer when neither the request nor the task gives one.
    """

    default_max_tokens: ClassVar[int]

    max_tokens: Annotated[int | None, MinusOneIsNone] = Field(None, ge=1)
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
    seed: Annotated[int | None, MinusOneIsNone] = Field(
        None, ge=-(2**63), le=2**63 - 1, description="-1 draws one, as null does."
    )
    stop: Annotated[
        NonEmptyStr | Annotated[list[NonEmptyStr], Field(max_length=16)] | None,
        must_be("a text or a list of up to 16 texts, none empty"),
    ] = None
    stop_token_ids: BodyList[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="false leaves special tokens in the text.")
    include_stop_str_in_output: bool | None = Field(None, description="true leaves the stop text in the answer.")
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
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's older name of structured_outputs.json.")
    guided_regex: str | None = None
    guided_choice: BodyList[str] | None = None
    cache_salt: CacheSalt = Field(
        None, description="vLLM's: cached tokens are shared with requests of the same key and salt alone."
    )
    best_of: int | None = Field(None, description="As many as n: all answers are given.")

    @field_validator("best_of")
    @classmethod
    def _check_best_of(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise PydanticCustomError(
                "unsupported_parameter", "is not supported: answers are not ranked; leave it out, and ask for n answers"
            )
        return value

    @model_validator(mode="after")
    def _check_stream_and_form(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value", "is wrong: stream_options is only for stream: true; leave it out"
            )
        if len(self._forms) > 1:
            raise PydanticCustomError(
                "invalid_value",
                "is wrong: {names} both give a form; send one of them",
                {"names": " and ".join(self._forms)},
            )
        return self

    def stream_option(self, name: str) -> bool:
        """Whether one of ``stream_options`` is true."""
        return self.stream_options is not None and bool(getattr(self.stream_options, name))

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
        return next((make() for make in self._forms.values()), None)

    @property
    def _forms(self) -> dict[str, Callable[[], Constraint]]:
        """What makes the constraint, by the options that are given."""
        forms: dict[str, Callable[[], Constraint]] = {}
        if (outputs := self.structured_outputs) is not None:
            forms["structured_outputs"] = lambda: outputs.constraint
        if (schema := self.guided_json) is not None:
            forms["guided_json"] = lambda: Constraint.json_schema(schema)
        if (pattern := self.guided_regex) is not None:
            forms["guided_regex"] = lambda: Constraint.regex(pattern)
        if (texts := self.guided_choice) is not None:
            forms["guided_choice"] = lambda: Constraint.choice(texts)
        return forms


class ChatRequest(GenerationRequest, NeutralChatOptions):
    """``POST /v1/chat/completions``."""

    model_config = example_request(
        {"model": "support", "messages": [{"role": "user", "content": "Where is my order?"}]}
    )

    default_max_tokens = CHAT_MAX_TOKENS

    messages: Messages
    max_completion_tokens: Annotated[int | None, MinusOneIsNone] = Field(None, ge=1)

    tools: BodyList[dict[str, Any]] | None = Field(None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, a function by name, or allowed_tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in an answer.")
    functions: BodyList[dict[str, Any]] | None = Field(None, description="OpenAI's older name of tools.")
    function_call: str | dict[str, Any] | None = Field(None, description="OpenAI's older name of tool_choice.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the model's chat template.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="Go on with the text of the last message.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="A variable of the chat template, where it has one."
    )
    verbosity: Literal["low", "medium", "high"] | None = None

    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise PydanticCustomError(
                "invalid_value", "is wrong: max_tokens and max_completion_tokens differ; send one of them"
            )
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("invalid_value", "is wrong: top_logprobs is only for logprobs: true; send both")
        for new, old in (("tools", "functions"), ("tool_choice", "function_call")):
            if getattr(self, new) and getattr(self, old):
                raise PydanticCustomError(
                    "invalid_value",
                    "is wrong: {old} is the older name of {new}; send {new} alone",
                    {"old": old, "new": new},
                )
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def _forms(self) -> dict[str, Callable[[], Constraint]]:
        forms = super()._forms
        if self.response_format is not None and (constraint := self.response_format.constraint) is not None:
            forms["response_format"] = lambda: constraint
        return forms

    @property
    def asks_functions(self) -> bool:
        """Whether the request speaks of tools by their older name, and so must the answer."""
        return bool(self.functions)

    def parse_tool_choice(self) -> ToolChoice:
        """Raises RequestError or UnsupportedOption for tools or a choice that are none."""
        if not self.functions:
            return ToolChoice.parse(self.tools, self.tool_choice, self.parallel_tool_calls)
        choice = self.function_call
        if isinstance(choice, dict):
            choice = {"type": "function", "function": choice}
        wrapped = [{"type": "function", "function": function} for function in self.functions]
        return ToolChoice.parse(wrapped, choice, False, "functions")


class CompletionRequest(GenerationRequest, NeutralTextOptions):
    """``POST /v1/completions``: one of ``prompt`` and ``inputs``."""

    model_config = example_request({"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 16})

    default_max_tokens = 16

    max_tokens: Annotated[int | None, MinusOneIsNone] = Field(
        None, ge=0, description="0 answers nothing, for the prompt that echo gives back."
    )
    prompt: Annotated[
        str | NonEmptyList[str] | NonEmptyList[int] | NonEmptyList[NonEmptyList[int]] | None,
        must_be("a text, a list of texts, a list of token ids, or a list of such lists"),
    ] = Field(None, description="Stands behind the task's prefix verbatim, without template.")
    inputs: dict[str, Any] | None = Field(None, description="Values for the fields of the task's template.")

    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = Field(None, description="Puts the prompt in front of the answer, and its logprobs if asked.")

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.inputs is None):
            raise PydanticCustomError(
                "invalid_value",
                "must hold either prompt (text or token ids) or inputs (values for the task's template)",
            )
        if self.max_tokens == 0 and not self.echo:
            raise PydanticCustomError(
                "invalid_value", "is wrong: max_tokens is 0, which is only for echo: true; ask for a token, or for both"
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
