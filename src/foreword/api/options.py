"""Options of requests by keyword, as the HTTP API names them; `foreword.server.openai.schema` says what each may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from foreword.errors import UsageError


class GenerateOptions(TypedDict, total=False):
    """Options of `generate`; one that is not given is the task's default, else the model's, as on a server."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    min_tokens: int
    ignore_eos: bool
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int
    structured_outputs: Mapping[str, Any]
    return_token_ids: bool


class ChatOptions(GenerateOptions, total=False):
    """Options of `chat`: those of `generate`, and those of conversations."""

    response_format: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    reasoning_effort: str
    chat_template_kwargs: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool


# Options of the HTTP API that these calls say otherwise, and how.
_OTHERWISE = {
    "model": "name the task as task",
    "task_id": "name the task as task",
    "prompt": "the prompt stands first",
    "inputs": "give the fields as a dict in place of the prompt",
    "messages": "the messages stand first",
    "stream": "call stream_generate or stream_chat",
    "stream_options": "call stream_generate or stream_chat, whose last chunk has the usage",
    "n": "call generate_many or chat_many with the prompt several times",
    "best_of": "call generate_many with the prompt several times",
    "top_logprobs": "give their number as logprobs",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that these calls say otherwise."""
    for name in options:
        if name in _OTHERWISE:
            raise UsageError(f"{name} is no option here; {_OTHERWISE[name]}.")


def chat_body(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as ``/v1/chat/completions`` takes them, where ``logprobs`` is two fields."""
    body = dict(options)
    if (count := body.pop("logprobs", None)) is not None:
        body |= {"logprobs": True, "top_logprobs": count}
    return body
