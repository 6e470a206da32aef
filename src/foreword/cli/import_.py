"""``foreword import``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as with_fields
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli.flags import expand_options
from foreword.cli.help import Application
from foreword.cli.interruption import on_interrupted_publish
from foreword.cli.options import Json, ModelOptions, Replace, emit, quiet_libraries
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.interop.checkpoint import Checkpoint
    from foreword.interop.prompt_format import PromptFormat
    from foreword.models import LanguageModel

app = Application(
    "Prompts that other programs learned.\n\nExample: foreword import peft runs/adapter --publish sentiment"
)

Source = Annotated[str, typer.Argument(help="Folder of the checkpoint, or its Hub id.")]
Publish = Annotated[
    str | None, typer.Option("--publish", help="Name of the task.", show_default="the name of the folder")
]
# Without the environment variable of other commands: the checkpoint names its base model.
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="Hub id, folder or .gguf file of its base model.", show_default="what the checkpoint names"
    ),
]
Template = Annotated[str | None, typer.Option("--template", help="How requests are worded; checkpoints do not say.")]
Verbalizer = Annotated[str | None, typer.Option("--verbalizer", help="Words of every label: JSON, or a JSON file.")]


@app.command()
@expand_options
def peft(
    source: Source,
    publish: Publish = None,
    task_id: Annotated[
        int | None, typer.Option("--task-id", help="Which task of a MULTITASK_PROMPT_TUNING checkpoint, from 0.")
    ] = None,
    template: Template = None,
    verbalizer: Verbalizer = None,
    *,
    replace: Replace = False,
    model: BaseModel = None,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """A folder that PEFT saved: PROMPT_TUNING, P_TUNING, CPT, MULTITASK_PROMPT_TUNING, PREFIX_TUNING, CARTRIDGE, LORA.

    Example: foreword import peft runs/adapter --publish sentiment
    """
    prompt_format = _parse_prompt_format(template, verbalizer)
    quiet_libraries()
    from foreword.interop.peft import base_model, import_peft, read_peft

    checkpoint = read_peft(source)
    options = with_fields(options, model=model or base_model(checkpoint))
    convert = partial(import_peft, task_id=task_id, prompt_format=prompt_format)
    _publish(checkpoint, convert, publish, options, replace=replace, json=json)


@app.command()
@expand_options
def ptuning_v2(
    source: Source,
    publish: Publish = None,
    length: Annotated[
        int | None, typer.Option("--length", help="Virtual tokens.", show_default="what the checkpoint says", min=1)
    ] = None,
    prefix_only: Annotated[bool, typer.Option("--prefix-only", help="Leave the checkpoint's own head out.")] = False,
    allow_quantized_origin: Annotated[
        bool, typer.Option("--allow-quantized-origin", help="Take prompts that were learned on a quantized model.")
    ] = False,
    template: Template = None,
    verbalizer: Verbalizer = None,
    *,
    replace: Replace = False,
    model: BaseModel = None,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """A checkpoint of THUDM's P-tuning v2 (BERT, RoBERTa), or of ChatGLM2 and later.

    Example: foreword import ptuning-v2 output/checkpoint-3000 --model glm --publish adverts
    """
    prompt_format = _parse_prompt_format(template, verbalizer)
    quiet_libraries()
    from foreword.interop.ptuning import base_model, import_ptuning, read_ptuning

    checkpoint = read_ptuning(source, length=length, allow_quantized_origin=allow_quantized_origin)
    options = with_fields(options, model=model or base_model(checkpoint))
    convert = partial(import_ptuning, prefix_only=prefix_only, prompt_format=prompt_format)
    _publish(checkpoint, convert, publish, options, replace=replace, json=json)


def _parse_prompt_format(template: str | None, verbalizer: str | None) -> PromptFormat:
    from foreword.interop.prompt_format import PromptFormat
    from foreword.text.template import decode_escapes

    return PromptFormat.parse(decode_escapes(template) if template is not None else None, verbalizer)


def _publish(
    checkpoint: Checkpoint,
    convert: Callable[[LanguageModel, Checkpoint, str], Task],
    publish: str | None,
    options: ModelOptions,
    *,
    replace: bool,
    json: bool,
) -> None:
    """Convert a checkpoint for its base model and publish the task, its name checked before the model is loaded."""
    if options.model is None:
        raise UsageError(f"{checkpoint} does not say which model it is for; give it with --model.")
    name = publish or checkpoint.name.lower()
    options.check_name(name)
    store = options.open_bank()
    with on_interrupted_publish(store, name):
        lm = options.open_model()
        task = store.publish(convert(lm, checkpoint, name), replace=replace, reserved=[lm.name])
    data = {"task": task.ref, "method": task.method, "length": task.prefix.length, "bytes": task.nbytes}
    head = ""
    if task.head is not None:
        data["labels"] = list(task.labels)
        head = f", a head of {len(task.labels)} labels: {', '.join(task.labels[:4])}{', ...' * (len(task.labels) > 4)}"
    text = f"published {task.ref} ({task.method}, {task.prefix.length} positions{head}, {task.nbytes:,} bytes)"
    emit(data, text, json)
