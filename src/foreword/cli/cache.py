"""``foreword cache``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import expand_options
from foreword.cli.interruption import command_line, current_version, on_interrupt
from foreword.cli.options import Json, ModelOptions, Replace, emit, say
from foreword.errors import CorruptFile, UnknownTask
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.core import Task
    from foreword.models import LanguageModel
    from foreword.text.static_prompts import StaticPrompt


@expand_options
def cache(
    file: Annotated[str, typer.Argument(help="JSON rows {task_id, prompt} or {task_id, system}.")],
    *,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Publish many static prompts at once, each under its task_id (rtp-llm's MULTI_TASK_PROMPT file).

    A prompt that is served already, word for word and for this model, is left as it is.

    Example: foreword cache multi_task_prompt.json
    """
    from foreword.text.static_prompts import read_prompts

    prompts = read_prompts(file)
    # All names are checked first, so that a bad one does not leave half of the file published.
    options.check_name(*(prompt.name for prompt in prompts))
    store = options.open_bank()
    tasks: list[dict[str, Any]] = []
    before = {prompt.name: current_version(store, prompt.name) for prompt in prompts}
    with on_interrupt(lambda: _interrupt_hint(store, before)):
        lm = options.open_model()
        from foreword.prompts.static import static_task

        with Progress("publishing", len(prompts), "prompts") as progress:
            for prompt in prompts:
                served = _served(store, prompt, lm)
                task = served or static_task(lm, prompt.name, prompt.kind, prompt.text)
                if served is None:
                    task = store.publish(task, replace=replace, reserved=[lm.name])
                what = "published" if served is None else "unchanged:"
                say(f"{what} {task.ref} ({task.prefix.length} positions)")
                row = {"task": task.ref, "length": task.prefix.length, "prefix_bytes": task.prefix.nbytes}
                tasks.append({**row, "unchanged": served is not None})
                progress.advance()
    new = [row for row in tasks if not row["unchanged"]]
    total = sum(row["prefix_bytes"] for row in new)
    same = f", {len(tasks) - len(new)} unchanged" if len(new) < len(tasks) else ""
    emit({"tasks": tasks}, f"published {len(new)} tasks ({total:,} bytes){same}", json)


def _served(bank: Bank, prompt: StaticPrompt, lm: LanguageModel) -> Task | None:
    """The version that is served, if it is this prompt on this model; ``None`` if there is anything to publish."""
    try:
        task = bank.load(prompt.name)
    except (UnknownTask, CorruptFile):
        return None
    wanted = "static", prompt.kind, prompt.text, lm.identity, lm.dtype, lm.quantization
    made_on = task.provenance.get("quantization")
    found = task.method, task.kind, task.text, task.prefix.model, task.prefix.keys[0].dtype, made_on
    return task if found == wanted else None


def _interrupt_hint(bank: Bank, before: Mapping[str, str | None]) -> str:
    """The hint of an interrupted run: how many prompts of the file are published, and the command that goes on.

    Args:
        before: the version of every task that was served before; ``None`` for a new task.
    """
    count = sum(current_version(bank, name) != version for name, version in before.items())
    return f"{count} of {len(before)} prompts are published; start again: {command_line()}"
