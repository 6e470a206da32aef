"""Participants in vLLM's place."""

from __future__ import annotations

import os
import time
from typing import Any


def embedded(settings: dict[str, Any]) -> dict[str, Any]:
    """The embedded engine in vLLM's place."""
    from benchmarks.conformance.engine_steps import decoded
    from foreword.bank.bank import Bank
    from foreword.engine.engine import Engine
    from foreword.models.load import load_model

    def decode(calls: list[dict[str, Any]], top: int) -> dict[str, Any]:
        lm = load_model(settings["model"], dtype="float32", device="cpu", progress=lambda line: None)
        with Engine(lm, cache_bytes=1 << 20) as engine:
            return {"steps": decoded(engine, Bank(settings["bank"]), calls, top)}

    return {"decode": decode}


def forgetful(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, without what stands in front."""
    decode = embedded(settings)["decode"]
    return {"decode": lambda calls, top: decode([{**each, "task": None, "length": 0} for each in calls], top)}


def dying(settings: dict[str, Any]) -> dict[str, Any]:
    return {"decode": lambda calls, top: os._exit(7)}


def refusing(settings: dict[str, Any]) -> dict[str, Any]:
    return {"decode": lambda calls, top: {"refused": f"{settings['model']} has odd heads; take others."}}


def sleepy(settings: dict[str, Any]) -> dict[str, Any]:
    return {"sleep": lambda seconds: time.sleep(seconds)}
