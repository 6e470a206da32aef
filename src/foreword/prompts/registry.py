"""`METHODS`: the learning methods by name, one line each; no other file names them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from foreword.errors import SettingError
from foreword.prompts.base import Method
from foreword.prompts.lora import LoRA, LoRAHybrid
from foreword.prompts.manual import Manual
from foreword.prompts.pet import Pet
from foreword.prompts.prefix import PrefixTuning, PTuningV2
from foreword.prompts.soft import PromptTuning, PTuning
from foreword.prompts.trigger import AutoPrompt

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        PTuningV2(),
        PromptTuning(),
        PTuning(),
        PrefixTuning(),
        LoRA(),
        LoRAHybrid(),
        Pet(),
        AutoPrompt(),
        Manual(),
    )
}


def get_method(name: str, **options: Any) -> Method:
    """The method called ``name`` with some of its options set, such as ``rank=4``.

    Raises:
        UsageError: there is no such method, or it has no such option; both are listed.
    """
    if name not in METHODS:
        raise SettingError("method", f"unknown method {name!r}; choose {', '.join(METHODS)}.")
    takes = {field.metadata.get("flag", field.name): field.name for field in fields(METHODS[name])}
    for option in options:
        if option not in takes:
            known = ", ".join(map(_flag, takes)) or "none"
            raise SettingError(option, f"--method {name} has no option {_flag(option)}; it takes {known}.")
    return replace(METHODS[name], **{takes[option]: value for option, value in options.items()})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
