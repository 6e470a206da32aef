"""Base models: load one by name, prove that it can carry a prefix, fingerprint it, cache conversions."""

from foreword.models.language_model import LanguageModel
from foreword.models.load import load_model

__all__ = ["LanguageModel", "load_model"]
