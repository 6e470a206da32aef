"""Candidates for the tests, made in a worker process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any


def echo(settings: dict[str, Any]) -> dict[str, Any]:
    print("a library that prints to stdout")
    os.write(1, b"and one that writes to the descriptor\n")
    environment = {"environment": lambda name: os.environ[name]}
    return {"add": lambda number: settings["first"] + number, "grow": _grow, **environment}


def broken(settings: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"no\ngood: {settings['first']}")


def parent(settings: dict[str, Any]) -> dict[str, Any]:
    return {"child": lambda: subprocess.Popen(["sleep", "60"]).pid}


def mortal(settings: dict[str, Any]) -> dict[str, Any]:
    return {"die": lambda: os._exit(7), "fail": lambda: 1 / 0, "quit": lambda: sys.exit(3)}


def sleepy(settings: dict[str, Any]) -> dict[str, Any]:
    return {"sleep": lambda seconds: time.sleep(seconds)}


def embedded(settings: dict[str, Any]) -> dict[str, Any]:
    """The embedded engine in vLLM's place."""
    from foreword.bank.bank import Bank
    from foreword.bench.conformance.vllm_side import answered
    from foreword.engine.engine import Engine
    from foreword.models.load import load_model

    def answers(asked: list[dict[str, Any]], top: int) -> dict[str, Any]:
        lm = load_model(settings["model"], dtype="float32", device="cpu", progress=lambda line: None)
        with Engine(lm, cache_bytes=1 << 20) as engine:
            return {"answers": answered(engine, Bank(settings["bank"]), asked, top)}

    return {"answers": answers}


def forgetful(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, without what stands in front."""
    answers = embedded(settings)["answers"]
    return {"answers": lambda asked, top: answers([{**each, "task": None, "length": 0} for each in asked], top)}


def dying(settings: dict[str, Any]) -> dict[str, Any]:
    return {"answers": lambda asked, top: os._exit(7)}


def refusing(settings: dict[str, Any]) -> dict[str, Any]:
    return {"answers": lambda asked, top: {"refused": f"{settings['model']} has odd heads; take others."}}


_held: list[bytes] = []


def _grow(megabytes: int) -> None:
    _held.append(b"x" * (megabytes << 20))
