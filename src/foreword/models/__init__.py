"""Base models: load one by name, probe that it carries prefixes, fingerprint it, cache conversions.

The two names load on first use: engines that run without PyTorch use the other files of this room.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.models.language_model import LanguageModel
    from foreword.models.load import load_model

_HOMES = {"LanguageModel": "foreword.models.language_model", "load_model": "foreword.models.load"}
__all__ = ["LanguageModel", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword.models' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
