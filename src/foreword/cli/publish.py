"""``foreword publish``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options, runs
from foreword.cli.completion import task_names
from foreword.cli.interruption import publishing
from foreword.errors import UsageError

if TYPE_CHECKING:
    pass


def publish(
    name: Annotated[str, typer.Argument(help="Name of the task.", autocompletion=task_names)],
    system: Annotated[str | None, typer.Option(help="File with a system prompt, or -.")] = None,
    text: Annotated[str | None, typer.Option(help="File with text that stands in front, or -.")] = None,
    run: Annotated[str | None, typer.Option(help="Folder of a training run.")] = None,
    prefix: Annotated[str | None, typer.Option(help="A prefix.safetensors file.")] = None,
    template: Annotated[str | None, typer.Option(help="Template for --prefix.")] = None,
    verbalizer: Annotated[str | None, typer.Option(help="Verbalizer for --prefix.")] = None,
    replace: options.Replace = False,
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """Publish a prompt, a training run or a prefix file as a task.

    Example: foreword publish support --system policy.txt
    """
    sources = {"--system": system, "--text": text, "--run": run, "--prefix": prefix}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) != 1:
        raise UsageError(f"give exactly one of {', '.join(sources)}; got {', '.join(given) or 'none'}.")
    if prefix is None and (template is not None or verbalizer is not None):
        raise UsageError("--template and --verbalizer go with --prefix; a run brings its own.")
    loads = system is not None or text is not None
    if not loads and (dtype != "auto" or device != "auto" or trust_remote_code):
        raise UsageError(f"{given[0]} needs no model; leave out --dtype, --device and --trust-remote-code.")
    store = options.open_bank(bank)
    from foreword.bank.bank import check_free

    reserved = [model or options.default_model()]
    check_free(name, reserved)
    with publishing(store, name):
        if run is not None:
            task = runs.kept(Path(run), name)
        elif prefix is not None:
            from foreword.interop.prefix_task import prefix_task

            task = prefix_task(name, Path(prefix), template, verbalizer)
        else:
            from foreword.prompts.static import static_task

            source = options.read_text(system or text or "")
            lm = options.open_model(model, dtype, device, trust_remote_code)
            task = static_task(lm, name, "system" if system is not None else "prompt", source)
        task = store.publish(task, replace=replace, reserved=reserved)
    data = {"task": task.ref, "length": task.prefix.length, "prefix_bytes": task.prefix.nbytes}
    options.emit(data, f"published {task.ref} ({task.prefix.length} positions, {task.prefix.nbytes:,} bytes)", json)
