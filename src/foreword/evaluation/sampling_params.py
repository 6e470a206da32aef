"""Sampling parameters of a request to a task: what the request says, else the task's defaults, else the model's, else
the API's. A learned task takes none of the model's: it was measured without.

Server, terminal chat, `foreword generate` and evaluation come through here, so a task answers alike in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from foreword.core import SamplingParams, Task
from foreword.core.sampling import GENERATION_DEFAULTS, parse_generation
from foreword.errors import UsageError
from foreword.text.prompt import Prompt

NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})

CHAT_MAX_TOKENS = 1024
"""``max_tokens`` of a chat answer when neither the request nor the task gives it."""


def task_sampling_params(
    task: Task | None, model_defaults: Mapping[str, Any] = NO_DEFAULTS, **overrides: Any
) -> SamplingParams:
    """The task's generation defaults over the model's, replaced by those ``overrides`` that are not ``None``.

    Args:
        model_defaults: see `foreword.models.generation_config.generation_config`.

    Raises UsageError for a wrong value.
    """
    defaults = {} if task is None else _parse_defaults(task)
    inherited = {} if _is_learned(task) else dict(model_defaults)
    return SamplingParams(**(inherited | defaults | {k: v for k, v in overrides.items() if v is not None}))


def request_sampling_params(
    task: Task | None,
    prompt: Prompt,
    context: int | None,
    default_max_tokens: int,
    model_defaults: Mapping[str, Any] = NO_DEFAULTS,
    *,
    is_encoder_decoder: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    **overrides: Any,
) -> SamplingParams:
    """`task_sampling_params` with the API's defaults: a learned task is greedy, everything else has temperature 1.

    Args:
        prompt: a default ``max_tokens`` is cut to the room that it leaves in ``context``; a client's is not.
        default_max_tokens: when neither the request nor the task gives it.
        model_defaults: see `task_sampling_params`.
        is_encoder_decoder: see `Prompt.room`.
        max_tokens, temperature, overrides: of the request; ``None`` for what it does not say.

    Raises UsageError for a wrong value.
    """
    defaults = {} if task is None else _parse_defaults(task)
    if temperature is None:
        usual = 0.0 if _is_learned(task) else model_defaults.get("temperature", 1.0)
        temperature = defaults.get("temperature", usual)
    usual = defaults.get("max_tokens", default_max_tokens)
    room = prompt.cap_max_tokens(usual, context, is_encoder_decoder=is_encoder_decoder)
    asked = {"max_tokens": max_tokens or room, "temperature": temperature, **overrides}
    return task_sampling_params(task, model_defaults, **asked)


def generation_defaults(**given: Any) -> dict[str, Any]:
    """A task's own generation defaults: those of ``given`` that are not ``None``.

    Raises UsageError for a wrong name or value.
    """
    found = {name: value for name, value in given.items() if value is not None}
    parse_generation(found)
    return found


def _is_learned(task: Task | None) -> bool:
    return task is not None and task.kind == "learned"


def _parse_defaults(task: Task) -> dict[str, Any]:
    """The task's own defaults, of those that this version knows."""
    try:
        return parse_generation({k: v for k, v in task.generation.items() if k in GENERATION_DEFAULTS})
    except UsageError as error:
        raise UsageError(
            f"a generation default of task '{task.name}' is wrong: {str(error).rstrip('.')}; publish the task again."
        ) from error
