"""``foreword demo``."""

from __future__ import annotations

from foreword.cli.interruption import command_line, on_interrupt
from foreword.cli.options import Json, ModelName, emit, open_model


def demo(model: ModelName = None, json: Json = False) -> None:
    """Learn, publish, serve and ask: the whole way, in a few minutes, on the built-in model.

    Example: foreword demo
    """
    from rich.console import Console

    console = Console(stderr=json)
    lm = open_model(model, "auto", "auto")
    from foreword.demo.demo import as_json, run_demo, show

    with on_interrupt(lambda: f"nothing of the demo was kept; start again: {command_line()}"):
        findings = run_demo(lm, console)
    show(findings, console)
    if json:
        emit(as_json(findings), "", json)
