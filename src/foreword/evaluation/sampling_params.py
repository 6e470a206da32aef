"""Sampling parameters of a request to a task: what the request says, else the task's defaults, else the model's, else
the API's. A learned task takes none of the model's: it was measured without.

Server, terminal chat, `foreword generate` and evaluation come through here, so a task answers alike in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from foreword.core import REQUEST_ONLY_PARAMS, SamplingParams, Task
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
    names = {field.name for field in fields(SamplingParams)} - REQUEST_ONLY_PARAMS
    defaults = {} if task is None else {k: v for k, v in task.generation.items() if k in names}
    if task is not None and "logit_bias" in defaults:
        defaults["logit_bias"] = _parse_logit_bias(task.name, defaults["logit_bias"])
    for name in ("stop", "stop_token_ids"):
        if name in defaults:
            defaults[name] = tuple(defaults[name])
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
    defaults = task.generation if task is not None else {}
    if temperature is None:
        usual = 0.0 if _is_learned(task) else model_defaults.get("temperature", 1.0)
        temperature = defaults.get("temperature", usual)
    usual = int(defaults.get("max_tokens", default_max_tokens))
    room = prompt.cap_max_tokens(usual, context, is_encoder_decoder=is_encoder_decoder)
    asked = {"max_tokens": max_tokens or room, "temperature": temperature, **overrides}
    return task_sampling_params(task, model_defaults, **asked)


def generation_defaults(**given: Any) -> dict[str, Any]:
    """A task's own generation defaults: those of ``given`` that are not ``None``.

    Raises UsageError for a wrong value, TypeError for a wrong name.
    """
    found = {name: value for name, value in given.items() if value is not None}
    checked: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in found.items()}
    SamplingParams(**checked)
    return found


def _is_learned(task: Task | None) -> bool:
    return task is not None and task.kind == "learned"


def _parse_logit_bias(name: str, value: Any) -> dict[int, float]:
    """A default ``logit_bias`` by token id: JSON has no numbers for keys."""
    try:
        return {int(token): float(bias) for token, bias in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"the default logit_bias of task '{name}' must be an object of token ids to numbers, found "
            f"{str(value)[:60]}; publish the task again."
        ) from None
