"""An engine of Foreword with the learned prefixes of a bank."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from foreword.bank.bank import Bank
from foreword.bench.client import token_ids
from foreword.bench.participants import open_engine
from foreword.bench.prompts import learned_name
from foreword.bench.worker import Handlers
from foreword.core import SamplingParams
from foreword.engine.protocol import Request


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load the prefixes, and start the engine."""
    bank = Bank.for_engine(settings["engine"], settings["bank"])
    prefixes = [bank.load(learned_name(index)).prefix for index in range(settings["prefixes"])]
    sampling = SamplingParams(max_tokens=settings["output_tokens"], ignore_eos=True)
    behind = [prefixes[index % len(prefixes)] for index in range(len(settings["prompts"]))]
    prompts = zip(settings["prompts"], behind, strict=True)
    requests = [Request(tuple(ids), prefix, prefix.length, sampling) for ids, prefix in prompts]
    engine = open_engine(settings)

    def run() -> dict[str, Any]:
        """Answer all requests, handed in at once: ``seconds``, and the ``tokens`` of every answer."""
        began = time.perf_counter()
        answers = [list(stream) for stream in [engine.submit(request) for request in requests]]
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": [token_ids(chunks) for chunks in answers]}

    return {"run": run}
