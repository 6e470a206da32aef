"""Participants for the tests, made in a worker process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


def echo(settings: dict[str, Any]) -> dict[str, Any]:
    print("a library that prints to stdout")
    os.write(1, b"and one that writes to the descriptor\n")
    environment = {"environment": lambda name: os.environ[name]}
    return {"add": lambda number: settings["first"] + number, **environment}


def broken(settings: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"no\ngood: {settings['first']}")


def parent(settings: dict[str, Any]) -> dict[str, Any]:
    return {"child": lambda: subprocess.Popen(["sleep", "60"]).pid}


def mortal(settings: dict[str, Any]) -> dict[str, Any]:
    return {"die": lambda: os._exit(7), "fail": lambda: 1 / 0, "quit": lambda: sys.exit(3)}
