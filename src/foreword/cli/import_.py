"""``foreword import``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options
from foreword.cli.interruption import publishing
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.interop.checkpoint import Checkpoint
    from foreword.interop.prompt_format import PromptFormat

app = typer.Typer(help="Prompts that other programs learned.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="Folder of the checkpoint, or its Hub id.")]
Publish = Annotated[
    str | None, typer.Option("--publish", help="Name of the task.", show_default="the name of the folder")
]
# Not the variable that other commands read: the checkpoint knows better than the environment which model it is for.
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="Hub id, folder or .gguf file of its base model.", show_default="what the checkpoint names"
    ),
]
Template = Annotated[str | None, typer.Option("--template", help="How requests are worded; checkpoints do not say.")]
Words = Annotated[str | None, typer.Option("--verbalizer", help="Words of every label: JSON, or a JSON file.")]


@app.command()
def peft(
    source: Source,
    publish: Publish = None,
    task_id: Annotated[
        int | None, typer.Option("--task-id", help="Which task of a MULTITASK_PROMPT_TUNING checkpoint, from 0.")
    ] = None,
    template: Template = None,
    verbalizer: Words = None,
    replace: options.Replace = False,
    model: BaseModel = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """A folder that PEFT saved: PROMPT_TUNING, P_TUNING, MULTITASK_PROMPT_TUNING, PREFIX_TUNING, CARTRIDGE or LORA.

    Example: foreword import peft runs/adapter --publish sentiment
    """
    wording = _wording(template, verbalizer)
    options.quiet_libraries()
    from foreword.interop.peft import base_model, import_peft, read_peft

    checkpoint = read_peft(source)
    named = model or base_model(checkpoint)
    name = _name(checkpoint, publish, named)
    store = options.open_bank(bank)
    with publishing(store, name):
        lm = options.open_model(named, dtype, device, trust_remote_code)
        task = import_peft(lm, checkpoint, name, task_id=task_id, wording=wording)
        task = store.publish(task, replace=replace, reserved=[lm.name])
    _say_published(task, json)


@app.command()
def ptuning_v2(
    source: Source,
    publish: Publish = None,
    prefix_only: Annotated[bool, typer.Option("--prefix-only", help="Leave the checkpoint's own head out.")] = False,
    template: Template = None,
    verbalizer: Words = None,
    replace: options.Replace = False,
    model: BaseModel = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """A checkpoint of THUDM's P-tuning v2 (BERT, RoBERTa), or of ChatGLM2 and later.

    Example: foreword import ptuning-v2 output/checkpoint-3000 --model glm --publish adverts
    """
    wording = _wording(template, verbalizer)
    options.quiet_libraries()
    from foreword.interop.ptuning import base_model, import_ptuning, read_ptuning

    checkpoint = read_ptuning(source)
    named = model or base_model(checkpoint)
    name = _name(checkpoint, publish, named)
    store = options.open_bank(bank)
    with publishing(store, name):
        lm = options.open_model(named, dtype, device, trust_remote_code)
        task = import_ptuning(lm, checkpoint, name, prefix_only=prefix_only, wording=wording)
        task = store.publish(task, replace=replace, reserved=[lm.name])
    _say_published(task, json)


def _wording(template: str | None, verbalizer: str | None) -> PromptFormat:
    from foreword.interop.prompt_format import PromptFormat
    from foreword.text.template import decode_escapes

    return PromptFormat.parse(decode_escapes(template) if template is not None else None, verbalizer)


def _name(checkpoint: Checkpoint, publish: str | None, model: str | None) -> str:
    """The name to publish under, checked before the model is loaded."""
    from foreword.bank.bank import check_free

    if model is None:
        raise UsageError(f"{checkpoint} does not say which model it is for; give it with --model.")
    name = publish or checkpoint.name.lower()
    check_free(name, [model])
    return name


def _say_published(task: Task, json: bool) -> None:
    data = {"task": task.ref, "method": task.method, "length": task.prefix.length, "bytes": task.nbytes}
    text = f"published {task.ref} ({task.method}, {task.prefix.length} positions, {task.nbytes:,} bytes)"
    options.emit(data, text, json)
