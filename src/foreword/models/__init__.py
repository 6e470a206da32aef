"""Base models: load one by name, probe that it carries prefixes, fingerprint it, cache conversions.

The two names load on first use: engines that run without PyTorch use the other files of this room.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {"LanguageModel": "foreword.models.language_model", "load_model": "foreword.models.load"}
__all__ = ["LanguageModel", "load_model"]

if TYPE_CHECKING:
    from foreword.models.language_model import LanguageModel
    from foreword.models.load import load_model
else:  # to type checkers a misspelt name is an error, not whatever this returns

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'foreword.models' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
