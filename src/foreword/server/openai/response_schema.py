"""Request body of ``POST /v1/responses``. A field is used, or it changes nothing, or it is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foreword.core import MAX_LOGPROBS
from foreword.server.openai.neutral_options import NeutralOptions, unsupported
from foreword.server.openai.response_items import to_messages, to_tool, to_tool_choice
from foreword.server.openai.schema import CacheSalt, ChatRequest
from foreword.server.schema import BodyList, NonEmptyList, example_request, must_be

_NOTHING_STORED = "nothing is stored here; send the whole conversation as input"
_NO_REASONING = "thoughts are part of the answer's text"


class ResponseStreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_obfuscation: Annotated[Any, unsupported(False, why="events have the length of their text")] = None


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Any = None
    description: Any = None
    strict: Any = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.schema_ is None) == (self.type == "json_schema"):
            raise PydanticCustomError("invalid_value", "must hold schema if its type is json_schema, else not")
        return self

    def to_response_format(self) -> dict[str, Any]:
        """As chat completions spell it."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"name": self.name, "schema": self.schema_}}


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Annotated[Any, unsupported("auto", why=_NO_REASONING)] = None
    generate_summary: Annotated[Any, unsupported("auto", why=_NO_REASONING)] = None
    context: Annotated[Any, unsupported("auto", why=_NO_REASONING)] = None
    mode: Annotated[Any, unsupported("standard", why="a model has one way to answer")] = None


class ResponseRequest(NeutralOptions):
    """``POST /v1/responses``: OpenAI's parameters, and the sampling options of the completions endpoints."""

    model_config = example_request({"model": "support", "input": "Where is my order?"})

    PASSED: ClassVar[tuple[str, ...]] = (
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "structured_outputs"),
        *("chat_template_kwargs", "parallel_tool_calls", "top_logprobs", "cache_salt"),
    )
    """Options that chat completions have under the same name, and check."""

    input: Annotated[
        str | NonEmptyList[dict[str, Any]], must_be("a text, or a list, not empty, of messages and other items")
    ]
    instructions: str | None = Field(None, description="A system turn in front of the input.")
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextConfig | None = None
    tools: BodyList[dict[str, Any]] | None = Field(None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    include: BodyList[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = Field(
        None, description="Log-probabilities; encrypted reasoning is never there."
    )
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto is taken as long as the input fits: nothing is left out of it here."
    )
    metadata: Annotated[dict[str, str] | None, must_be("an object of texts")] = Field(
        None, description="Given back with the response."
    )
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | BodyList[str] | None = None
    stop_token_ids: BodyList[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    structured_outputs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: CacheSalt = None

    max_tool_calls: Any = Field(None, description="Bounds the calls of tools that run at OpenAI; there are none.")
    background: Annotated[Any, unsupported(False, why="a response is given while the client waits")] = None
    background_options: Annotated[Any, unsupported({}, why="a response is given while the client waits")] = None
    previous_response_id: Annotated[Any, unsupported(why=_NOTHING_STORED)] = None
    conversation: Annotated[Any, unsupported(why=_NOTHING_STORED)] = None
    prompt: Annotated[Any, unsupported(why="prompts are stored at OpenAI; publish a task, and name it as model")] = None
    context_management: Annotated[Any, unsupported([], why="send what the context holds")] = None
    moderation: Annotated[Any, unsupported(why="no moderation model runs here; ask one before and after")] = None
    image: Annotated[Any, unsupported({}, why="the model reads text")] = None
    access_programs: Annotated[Any, unsupported({}, why="there are none here")] = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def to_chat(self) -> ChatRequest:
        """The same request to chat completions.

        Raises RequestError, UnsupportedOption, or pydantic's ValidationError for an option that chat refuses.
        """
        values = {name: getattr(self, name) for name in self.PASSED if getattr(self, name) is not None}
        values |= {"model": self.model, "task_id": self.task_id, "max_completion_tokens": self.max_output_tokens}
        values["messages"] = to_messages(self.input, self.instructions)
        values["logprobs"] = self.wants_logprobs
        if self.tools:
            values["tools"] = [to_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            values["tool_choice"] = to_tool_choice(self.tool_choice)
        if self.text is not None:
            values["verbosity"] = self.text.verbosity
            values["response_format"] = self.text.format and self.text.format.to_response_format()
        if self.reasoning is not None:
            values["reasoning_effort"] = self.reasoning.effort
        return ChatRequest.model_validate(values)
