"""``foreword publish``."""

from __future__ import annotations

from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Annotated

import typer

from foreword.bank.time_to_live import format_duration, parse_duration
from foreword.cli.completion import complete_task
from foreword.cli.flags import expand_options
from foreword.cli.interruption import on_interrupted_publish
from foreword.cli.options import Json, ModelOptions, Replace, emit, exactly_one, read_text
from foreword.errors import UsageError


@expand_options
def publish(
    name: Annotated[str, typer.Argument(help="Name of the task.", autocompletion=complete_task)],
    system: Annotated[str | None, typer.Option(help="File with a system prompt, or -.")] = None,
    text: Annotated[str | None, typer.Option(help="File with text that stands in front, or -.")] = None,
    run: Annotated[str | None, typer.Option(help="Folder of a training run.")] = None,
    prefix: Annotated[str | None, typer.Option(help="A prefix.safetensors file.")] = None,
    template: Annotated[str | None, typer.Option(help="Template for --prefix.")] = None,
    verbalizer: Annotated[str | None, typer.Option(help="Verbalizer for --prefix.")] = None,
    ttl: Annotated[
        str | None, typer.Option(help="Expire after this time without a use, such as 7d.", show_default="never")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="The task's own; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="The task's own probability mass to sample from.")] = None,
    top_k: Annotated[int | None, typer.Option(help="The task's own number of tokens to sample from.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The task's own bound of an answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the task's answers.")] = None,
    *,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Publish a prompt, a training run or a prefix file as a task.

    Example: foreword publish support --system policy.txt
    """
    flag, source = exactly_one({"--system": system, "--text": text, "--run": run, "--prefix": prefix})
    if prefix is None and (template is not None or verbalizer is not None):
        raise UsageError("--template and --verbalizer go with --prefix; a run brings its own.")
    needs_model = flag in ("--system", "--text")
    if not needs_model and options != ModelOptions(options.model, options.bank):
        raise UsageError(
            f"{flag} needs no model; leave out --dtype, --device, --device-map, --quantize and --trust-remote-code."
        )
    seconds = parse_duration(ttl) if ttl is not None else None
    from foreword.evaluation.sampling_params import generation_defaults

    generation = generation_defaults(
        temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens, stop=stop or None
    )
    store = options.open_bank()
    options.check_name(name)
    with on_interrupted_publish(store, name):
        if run is not None:
            from foreword.bank.run_task import read_task

            task = read_task(Path(run), name)
        elif prefix is not None:
            from foreword.interop.prefix_task import prefix_task

            task = prefix_task(name, Path(prefix), template, verbalizer)
        else:
            content = read_text(source)
            from foreword.prompts.static import static_task

            lm = options.open_model()
            task = static_task(lm, name, "system" if system is not None else "prompt", content)
        task = replace_fields(task, generation={**task.generation, **generation}, ttl=seconds)
        task = store.publish(task, replace=replace, reserved=[options.model_name])
    shown = "".join(f", {key} {value}" for key, value in task.generation.items())
    shown += f", ttl {format_duration(task.ttl)}" if task.ttl is not None else ""
    data = {"task": task.ref, "length": task.prefix.length, "prefix_bytes": task.prefix.nbytes}
    data |= {"generation": dict(task.generation)} if task.generation else {}
    data |= {"ttl": task.ttl} if task.ttl is not None else {}
    emit(data, f"published {task.ref} ({task.prefix.length} positions, {task.prefix.nbytes:,} bytes{shown})", json)
