"""One approach on one data set."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from foreword.bench.worker import Handlers


def start(settings: Mapping[str, Any]) -> Handlers:
    """``module`` of this package learns and evaluates by its function ``figures``."""
    module = import_module(f"{__package__}.{settings['module']}")
    return {"figures": lambda: module.figures(settings)}
