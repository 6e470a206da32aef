"""The engines that a model can be opened on: a function for each, by the name that ``foreword serve`` has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foreword.api.defaults import open_model
from foreword.bank.bank import Bank
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UsageError
from foreword.home import default_model

if TYPE_CHECKING:
    from foreword.models import LanguageModel

EngineName = Literal["embedded", "llamacpp", "vllm"]
Limits = Mapping[str, Any]
"""``max_model_len``, ``max_waiting`` and ``allow_other_weights`` of an engine."""


def _embedded(model: LanguageModel | str | None, bank: Bank, limits: Limits) -> EngineProtocol:
    from foreword.engine.engine import Engine

    return Engine(open_model(model), **limits)


def _llamacpp(model: LanguageModel | str | None, bank: Bank, limits: Limits) -> EngineProtocol:
    from foreword.llamacpp.compat import check_version

    check_version()
    from foreword.llamacpp.engine import LlamaCppEngine
    from foreword.llamacpp.model import gguf_model

    return LlamaCppEngine(gguf_model(_name(model, "llamacpp"), progress=_quiet), **limits)


def _vllm(model: LanguageModel | str | None, bank: Bank, limits: Limits) -> EngineProtocol:
    from foreword.vllm.compat import check_version

    check_version()
    from foreword.models.model_info import model_info
    from foreword.vllm.engine import VllmEngine

    # Its processes have a working directory of their own.
    root = bank.location if "://" in bank.location else str(Path(bank.location).absolute())
    return VllmEngine(model_info(_name(model, "vllm"), progress=_quiet), root, **limits)


ENGINES: dict[EngineName, Callable[[LanguageModel | str | None, Bank, Limits], EngineProtocol]] = {
    "embedded": _embedded,
    "llamacpp": _llamacpp,
    "vllm": _vllm,
}


def _name(model: LanguageModel | str | None, engine: EngineName) -> str:
    """The name of a model that an engine loads by itself."""
    if model is not None and not isinstance(model, str):
        raise UsageError(f"engine {engine!r} loads its model by itself; give the name in place of a loaded model.")
    return model or default_model()


def _quiet(line: str) -> None:
    """Progress is not said from Python."""
