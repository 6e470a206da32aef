"""``foreword demo``."""

from __future__ import annotations

from foreword.cli import options


def demo(model: options.ModelName = None, json: options.Json = False) -> None:
    """Learn, publish, serve and ask: the whole way, in a few minutes, on the built-in model."""
    from rich.console import Console

    console = Console(stderr=json)
    lm = options.open_model(model, "auto", "auto")
    from foreword.demo.demo import as_json, run_demo, show

    findings = run_demo(lm, console)
    show(findings, console)
    if json:
        options.emit(as_json(findings), "", json)
