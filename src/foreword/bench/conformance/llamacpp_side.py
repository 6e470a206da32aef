"""Our engine on llama.cpp, in its own Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foreword.bank.arrays import load_arrays
from foreword.bank.bank import Bank
from foreword.bench.conformance.vllm_side import Asked, Step, answered
from foreword.llamacpp.engine import LlamaCppEngine
from foreword.llamacpp.model import gguf_model


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The settings are ``model``, a GGUF file, and ``bank``, a folder."""

    def answers(asked: Sequence[Asked], top: int) -> list[list[Step]]:
        # The file is written from the folder by the benchmark, so its digest is in no lineage.
        with LlamaCppEngine(gguf_model(settings["model"]), cells=512, allow_other_weights=True) as engine:
            return answered(engine, Bank(settings["bank"], load=load_arrays), asked, top)

    return {"answers": answers}
