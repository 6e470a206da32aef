"""The methods of learning, one line each; no other file names them."""

from __future__ import annotations

from foreword.errors import UsageError
from foreword.prompts.base import Method
from foreword.prompts.manual import Manual
from foreword.prompts.prefix import PTuningV2
from foreword.prompts.soft import PromptTuning

METHODS: dict[str, Method] = {method.name: method for method in (PTuningV2(), PromptTuning(), Manual())}


def method(name: str) -> Method:
    """The method called ``name``. Raises UsageError that lists them all."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; choose {', '.join(METHODS)}.")
    return METHODS[name]
