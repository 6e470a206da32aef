"""``foreword models``."""

from __future__ import annotations

from typing import Annotated

import typer

from foreword.cli.help import Application
from foreword.cli.interruption import command_line, on_interrupt
from foreword.cli.options import Json, emit, quiet_libraries, say

app = Application("Base models.\n\nExample: foreword models pull smollm2-135m")


@app.callback()
def _models() -> None:
    """A group, although it has one command so far."""


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="smollm2-135m, a .gguf file, a folder or a Hub id.")] = "smollm2-135m",
    json: Json = False,
) -> None:
    """Fetch or convert a model once and print its folder.

    Example: foreword models pull smollm2-135m
    """
    quiet_libraries()
    from foreword.models.load import pull as pull_model

    with on_interrupt(lambda: f"{name} is not ready yet; go on with: {command_line()}"):
        folder = str(pull_model(name, say))
    emit({"model": name, "folder": folder}, folder, json)
