"""vLLM with our connector, in its own Python; and how any engine answers behind the prefixes of a bank."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword import errors
from foreword.bank.bank import Bank
from foreword.core import SamplingParams
from foreword.engine.protocol import Chunk, EngineProtocol, Request
from foreword.errors import BenchError, ForewordError

STEPS = 8
# The smallest block that its CPU kernels take: a longer prefix ends in the middle of its second one.
FLAGS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "8")

Asked = Mapping[str, Any]
"""A request as JSON: ``task`` of the bank or ``None``, ``length`` of its prefix that is used, ``token_ids``."""
Step = tuple[int, Sequence[tuple[int, float]]]
"""The token that was chosen, and the most probable ones with their log-probabilities."""


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The settings are ``model`` and ``bank``, two folders, and ``log``, a file for whatever vLLM prints."""

    def answers(asked: Sequence[Asked], top: int) -> dict[str, Any]:
        """``answers``, or why there are none: ``refused`` or ``failed``."""
        from foreword.models.model_info import model_info
        from foreword.vllm.engine import VllmEngine

        log = Path(settings["log"])
        _print_to(log)
        try:
            described = model_info(settings["model"], progress=lambda line: None)
            with VllmEngine(described, settings["bank"], flags=FLAGS) as engine:
                return {"answers": answered(engine, Bank(settings["bank"]), asked, top)}
        except ForewordError as error:
            return ended(log.read_text(encoding="utf-8", errors="replace"), error)

    return {"answers": answers}


def answered(engine: EngineProtocol, bank: Bank, asked: Sequence[Asked], top: int) -> list[list[Step]]:
    """Greedy steps of every request, all together. Raises BenchError for a request that got no answer."""
    sampling = SamplingParams(max_tokens=STEPS, ignore_eos=True, logprobs=top)
    requests = []
    for each in asked:
        prefix = bank.load(each["task"]).prefix if each["task"] is not None else None
        requests.append(Request(tuple(each["token_ids"]), prefix, each["length"], sampling))
    streams = [engine.submit(request) for request in requests]
    found = [[step for chunk in stream for step in _steps(chunk)] for stream in streams]
    for steps in found:
        if len(steps) != STEPS:
            raise BenchError(f"an answer ended after {len(steps)} of {STEPS} tokens.")
    return found


def ended(log: str, error: ForewordError) -> dict[str, str]:
    """What vLLM's processes died of, in the words of the first one that did, or else the error that came of it.

    It is ``refused`` if it says that something is not supported, and ``failed`` otherwise: it may go well another time.
    """
    found = [(kind, said) for kind, said in _RAISED.findall(log) if not said.startswith(_SECOND_HAND)]
    kind, said = found[0] if found else (type(error).__name__, str(error))
    said = " ".join(said.split())
    key = "refused" if "support" in f"{kind} {said}".lower() else "failed"
    return {key: said if hasattr(errors, kind) else f"vLLM says {said}"}


# A traceback's last line, behind what vLLM's logger puts in front.
_RAISED = re.compile(
    r"^(?:.*?\] )?(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Model|Mismatch|File)): (.+)$", re.MULTILINE
)
# What one process says when another one has died.
_SECOND_HAND = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineCore encountered")


def _steps(chunk: Chunk) -> list[Step]:
    if chunk.error is not None:
        raise BenchError(chunk.error)
    return [(each.token_id, each.top) for each in chunk.logprobs]


def _print_to(log: Path) -> None:
    """From here on everything that this process and its own print goes there."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for each in (1, 2):
        os.dup2(descriptor, each)
    os.close(descriptor)
