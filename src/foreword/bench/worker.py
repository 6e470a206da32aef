"""The process of one candidate: makes it, then answers questions, a JSON object a line.

Run as ``python -m foreword.bench.worker MODULE:FUNCTION``. The first line on stdin are the settings, which the function
turns into named answers; every further line asks one of them. Imports nothing but the standard library itself, so that
a peer's Python needs no more than the peer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TextIO

from foreword.bench import memory

Answers = Mapping[str, Callable[..., Any]]
"""What a candidate can be asked; every answer takes and returns JSON values."""


class _Peak:
    """Memory of the candidate: while it was made, and from then on."""

    def __init__(self) -> None:
        self._making = memory.peak()
        self._loaded = memory.held()
        self._from_then_on = memory.forget_peak()

    def __call__(self) -> dict[str, int | None]:
        """``peak_bytes`` of the whole process, and ``growth_bytes`` over what it held when it was ready."""
        peak = memory.peak()
        growth = peak - self._loaded if self._from_then_on and self._loaded is not None else None
        return {"peak_bytes": max(peak, self._making), "growth_bytes": growth}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks, and ends this one
    replies = _claim_stdout()
    try:
        module, _, function = sys.argv[1].partition(":")
        answers: Answers = getattr(import_module(module), function)(json.loads(sys.stdin.readline()))
        answers = {"memory": _Peak(), **answers}
        _reply(replies, {"answer": None})
        for line in sys.stdin:
            question = json.loads(line)
            _reply(replies, {"answer": answers[question["ask"]](**question["with"])})
    except Exception as error:  # whatever a peer raises is the answer
        _reply(replies, {"error": _said(error)})
        sys.exit(1)


def _said(error: Exception) -> str:
    """What went wrong and where, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {what} ({os.path.basename(frame.filename)} line {frame.lineno})"


def _claim_stdout() -> TextIO:
    """The real stdout for replies alone; whatever libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, data: Mapping[str, Any]) -> None:
    replies.write(json.dumps(data) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
