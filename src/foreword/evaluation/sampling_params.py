"""Sampling parameters of a request to a task: what the request says, else the task's defaults, else the API's.

Server, terminal chat, `foreword generate` and evaluation come through here, so a task answers alike in all of them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from foreword.core import REQUEST_ONLY_PARAMS, SamplingParams, Task
from foreword.errors import UsageError
from foreword.text.prompt import Prompt

CHAT_MAX_TOKENS = 1024
"""``max_tokens`` of a chat answer when neither the request nor the task gives it."""


def task_sampling_params(task: Task | None, **overrides: Any) -> SamplingParams:
    """The task's generation defaults, replaced by those ``overrides`` that are not ``None``.

    Raises UsageError for a wrong value.
    """
    names = {field.name for field in fields(SamplingParams)} - REQUEST_ONLY_PARAMS
    defaults = {} if task is None else {k: v for k, v in task.generation.items() if k in names}
    if task is not None and "logit_bias" in defaults:
        defaults["logit_bias"] = _parse_logit_bias(task.name, defaults["logit_bias"])
    for name in ("stop", "stop_token_ids"):
        if name in defaults:
            defaults[name] = tuple(defaults[name])
    return SamplingParams(**(defaults | {k: v for k, v in overrides.items() if v is not None}))


def request_sampling_params(
    task: Task | None,
    prompt: Prompt,
    context: int | None,
    default_max_tokens: int,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    **overrides: Any,
) -> SamplingParams:
    """`task_sampling_params` with the API's defaults: a learned task is greedy, everything else has temperature 1.

    Args:
        prompt: a default ``max_tokens`` is cut to the room that it leaves in ``context``; a client's is not.
        default_max_tokens: when neither the request nor the task gives it.
        max_tokens, temperature, overrides: of the request; ``None`` for what it does not say.

    Raises UsageError for a wrong value.
    """
    defaults = task.generation if task is not None else {}
    if temperature is None:
        temperature = defaults.get("temperature", 0.0 if task is not None and task.kind == "learned" else 1.0)
    room = prompt.cap_max_tokens(int(defaults.get("max_tokens", default_max_tokens)), context)
    return task_sampling_params(task, max_tokens=max_tokens or room, temperature=temperature, **overrides)


def _parse_logit_bias(name: str, value: Any) -> dict[int, float]:
    """A default ``logit_bias`` by token id: JSON has no numbers for keys."""
    try:
        return {int(token): float(bias) for token, bias in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"the default logit_bias of task '{name}' must be an object of token ids to numbers, found "
            f"{str(value)[:60]}; publish the task again."
        ) from None
