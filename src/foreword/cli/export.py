"""``foreword export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli.completion import complete_task
from foreword.cli.help import Application
from foreword.cli.options import BankRoot, Json, ModelName, ModelOptions, RemoteCode, emit

app = Application("Tasks for other programs.\n\nExample: foreword export peft reviews runs/adapter")


@app.callback()
def _export() -> None:
    """A group, although it has one command so far."""


@app.command()
def peft(
    name: Annotated[str, typer.Argument(help="Task, or task@version.", autocompletion=complete_task)],
    path: Annotated[Path, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    model: ModelName = None,
    bank: BankRoot = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """A folder for PeftModel.from_pretrained: PREFIX_TUNING, PROMPT_TUNING or LORA.

    Example: foreword export peft sentiment runs/adapter
    """
    options = ModelOptions(model, bank, trust_remote_code=trust_remote_code)
    from foreword.interop.export_folder import check_empty

    check_empty(path)
    options.check_task(name)
    task = options.open_bank().load(name)
    lm = options.open_model()
    from foreword.interop.export import export_peft

    kind = export_peft(lm, task, path)
    data = {"task": task.ref, "peft_type": kind, "path": str(path)}
    emit(data, f"wrote {task.ref} to {path} ({kind})", json)
