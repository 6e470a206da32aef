"""An engine and the server in front of it, in one process; whoever asks over HTTP is another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from foreword.bench.material import windows
from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.models.load import load_model
from foreword.server.app import create_app
from foreword.server.background import serve_in_background


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Load the model and open the port."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    prompts = windows(lm.tokenizer, settings["text"], settings["clients"], settings["prompt_tokens"])
    engine = Engine(lm, reuse=False)
    stack = ExitStack()
    url = stack.enter_context(serve_in_background(create_app(engine, None)))

    def direct(tokens: int) -> float:
        """Seconds until all prompts are answered by the engine itself."""
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        for _ in engine.generate([Request(tuple(ids), sampling=sampling) for ids in prompts]):
            pass
        return time.perf_counter() - began

    # The port is open for as long as somebody holds the stack.
    return {
        "close": stack.close,
        "direct": direct,
        "place": lambda: {"url": url, "model": engine.name},
        "prompts": lambda: prompts,
    }
