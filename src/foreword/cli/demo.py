"""``foreword demo``."""

from __future__ import annotations

from foreword.cli import options
from foreword.cli.interruption import command_line, going_on


def demo(model: options.ModelName = None, json: options.Json = False) -> None:
    """Learn, publish, serve and ask: the whole way, in a few minutes, on the built-in model.

    Example: foreword demo
    """
    from rich.console import Console

    console = Console(stderr=json)
    lm = options.open_model(model, "auto", "auto")
    from foreword.demo.demo import as_json, run_demo, show

    with going_on(lambda: f"nothing of the demo was kept; start again: {command_line()}"):
        findings = run_demo(lm, console)
    show(findings, console)
    if json:
        options.emit(as_json(findings), "", json)
