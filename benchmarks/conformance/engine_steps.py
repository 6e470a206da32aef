"""Greedy steps of any engine behind the prefixes of a bank, and our engines on vLLM and llama.cpp in their Pythons."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword import errors
from foreword.bank.bank import Bank
from foreword.bench.participants import LLAMACPP
from foreword.bench.worker import Handlers
from foreword.core import SamplingParams
from foreword.engine.protocol import EngineProtocol, Request, TokenLogprob
from foreword.errors import BenchError, ForewordError

STEPS = 8
# The smallest block that its CPU kernels take: a longer prefix ends in the middle of its second one.
FLAGS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "8")

Call = Mapping[str, Any]
"""A request as JSON: ``task`` of the bank or ``None``, ``length`` of its prefix that is used, ``token_ids``."""
Decoded = tuple[int, Sequence[tuple[int, float]]]
"""The token that was chosen, and the most probable ones with their log-probabilities."""


def decoded(engine: EngineProtocol, bank: Bank, calls: Sequence[Call], top: int) -> Sequence[Sequence[Decoded]]:
    """Greedy steps of every request, all together. Raises BenchError for a request that got no answer."""
    sampling = SamplingParams(max_tokens=STEPS, ignore_eos=True, logprobs=top)
    requests = []
    for call in calls:
        prefix = bank.load(call["task"]).prefix if call["task"] is not None else None
        requests.append(Request(tuple(call["token_ids"]), prefix, call["length"], sampling))
    answers = [list(stream) for stream in [engine.submit(request) for request in requests]]
    for chunks in answers:
        if (error := next((chunk.error for chunk in chunks if chunk.error is not None), None)) is not None:
            raise BenchError(error)
    found = [
        [(each.token_id, each.top) for chunk in chunks for each in chunk.logprobs if isinstance(each, TokenLogprob)]
        for chunks in answers
    ]
    for steps in found:
        if len(steps) != STEPS:
            raise BenchError(f"an answer ended after {len(steps)} of {STEPS} tokens.")
    return found


def start_llamacpp(settings: Mapping[str, Any]) -> Handlers:
    """Our engine on llama.cpp, in its own Python; ``model`` is a GGUF file, ``bank`` a folder."""
    from foreword.llamacpp.engine import LlamaCppEngine
    from foreword.llamacpp.model import gguf_model

    def decode(calls: Sequence[Call], top: int) -> dict[str, Any]:
        # The file is written from the folder by the benchmark, so its digest is in no lineage.
        with LlamaCppEngine(gguf_model(settings["model"]), cells=512, allow_other_weights=True) as engine:
            return {"steps": decoded(engine, Bank.for_engine(LLAMACPP, settings["bank"]), calls, top)}

    return {"decode": decode}


def start_vllm(settings: Mapping[str, Any]) -> Handlers:
    """vLLM with our connector, in its own Python; ``model`` and ``bank`` are folders, ``log`` a file for its output."""

    def decode(calls: Sequence[Call], top: int) -> dict[str, Any]:
        """``steps``, or why there are none: ``refused`` or ``failed``."""
        from foreword.models.model_info import model_info
        from foreword.vllm.engine import VllmEngine

        log = Path(settings["log"])
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for each in (1, 2):  # from here on everything that this process and its own print goes there
            os.dup2(descriptor, each)
        os.close(descriptor)
        try:
            described = model_info(settings["model"], progress=lambda line: None)
            with VllmEngine(described, settings["bank"], flags=FLAGS) as engine:
                return {"steps": decoded(engine, Bank(settings["bank"]), calls, top)}
        except ForewordError as error:
            return ended(log.read_text(encoding="utf-8", errors="replace"), error)

    return {"decode": decode}


# A traceback's last line, behind what vLLM's logger puts in front.
_RAISED = re.compile(
    r"^(?:.*?\] )?(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Model|Mismatch|File)): (.+)$", re.MULTILINE
)
# What one process says when another one has died.
_SECOND_HAND = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineCore encountered")


def ended(log: str, error: ForewordError) -> dict[str, str]:
    """What vLLM's processes died of, in the words of the first one that did, or else the error that came of it.

    It is ``refused`` if it says that something is not supported, and ``failed`` otherwise: it may go well another time.
    """
    found = [(kind, text) for kind, text in _RAISED.findall(log) if not text.startswith(_SECOND_HAND)]
    kind, text = found[0] if found else (type(error).__name__, str(error))
    text = " ".join(text.split())
    key = "refused" if "support" in f"{kind} {text}".lower() else "failed"
    return {key: text if hasattr(errors, kind) else f"vLLM says {text}"}
