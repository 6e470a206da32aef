"""What an answer is made with that nobody asked for: the task's defaults, then those of the API.

Server and terminal chat both come through here, so a task answers alike in both.
"""

from __future__ import annotations

from typing import Any

from foreword.core import SamplingParams, Task
from foreword.evaluation.evaluate import generation_params
from foreword.text.request import Prompt

CHAT_TOKENS = 1024
"""Bound of an answer in a conversation when neither the request nor the task gives one."""


def answer_params(
    task: Task | None,
    prompt: Prompt,
    context: int | None,
    usual_tokens: int,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    **asked: Any,
) -> SamplingParams:
    """What a request asks for, else the task's defaults, else the API's: a learned task is greedy, all else sampled.

    Args:
        prompt: bounds a default by the room that it leaves in ``context``; what a client asks for is never cut.
        usual_tokens: bound of an answer when neither the request nor the task gives one.
        asked: further fields of `SamplingParams`; ``None`` means not asked for.

    Raises UsageError for a wrong value.
    """
    defaults = task.generation if task is not None else {}
    if temperature is None:
        temperature = defaults.get("temperature", 0.0 if task is not None and task.kind == "learned" else 1.0)
    usual = int(defaults.get("max_tokens", usual_tokens))
    room = prompt.fitting(usual, context)
    return generation_params(task, max_tokens=max_tokens or room, temperature=temperature, **asked)
