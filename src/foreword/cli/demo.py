"""``foreword demo``."""

from __future__ import annotations

from dataclasses import asdict

from foreword.cli.interruption import command_line, on_interrupt
from foreword.cli.options import Json, ModelName, ModelOptions, emit


def demo(model: ModelName = None, json: Json = False) -> None:
    """Learn, publish, serve and ask: the whole way, in a few minutes, on the built-in model.

    Example: foreword demo
    """
    from rich.console import Console

    console = Console(stderr=json)
    lm = ModelOptions(model).open_model(is_trainable=True)
    from foreword.demo.demo import print_report, run_demo

    with on_interrupt(lambda: f"nothing of the demo was kept; start again: {command_line()}"):
        report = run_demo(lm, console)
    print_report(report, console)
    if json:
        emit(asdict(report), "", json)
