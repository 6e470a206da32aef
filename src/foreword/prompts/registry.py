"""`METHODS`: the learning methods by name, one line each; no other file names them."""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from foreword.core.lazy_registry import LazyRegistry
from foreword.errors import SettingError

if TYPE_CHECKING:
    from foreword.prompts.base import Method

# Where each is, which is imported when it is asked for.
_HOMES = {
    "p-tuning-v2": "foreword.prompts.prefix.PTuningV2",
    "prompt-tuning": "foreword.prompts.soft.PromptTuning",
    "p-tuning": "foreword.prompts.soft.PTuning",
    "prefix-tuning": "foreword.prompts.prefix.PrefixTuning",
    "lora": "foreword.prompts.lora.LoRA",
    "lora-hybrid": "foreword.prompts.lora.LoRAHybrid",
    "pet": "foreword.prompts.pet.Pet",
    "autoprompt": "foreword.prompts.trigger.AutoPrompt",
    "manual": "foreword.prompts.manual.Manual",
}


METHODS: LazyRegistry[Method] = LazyRegistry(_HOMES)
"""At their defaults."""


def check_method(name: str) -> None:
    """Raise SettingError unless there is such a method."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        meant = f", did you mean {near[0]!r}" if near else ""
        raise SettingError("method", f"unknown method {name!r}{meant}; choose {', '.join(METHODS)}.")


def get_method(name: str, **options: Any) -> Method:
    """The method called ``name`` with some of its options set, such as ``rank=4``.

    Raises:
        UsageError: there is no such method, or it has no such option; both are listed.
    """
    check_method(name)
    takes = {field.metadata.get("flag", field.name): field.name for field in fields(METHODS[name])}
    for option in options:
        if option not in takes:
            known = ", ".join(map(_flag, takes)) or "none"
            raise SettingError(option, f"--method {name} has no option {_flag(option)}; it takes {known}.")
    return replace(METHODS[name], **{takes[option]: value for option, value in options.items()})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
