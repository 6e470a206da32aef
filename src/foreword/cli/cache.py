"""``foreword cache``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import expand_options
from foreword.cli.interruption import command_line, current_version, on_interrupt
from foreword.cli.options import Json, ModelOptions, Replace, emit, say
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank


@expand_options
def cache(
    file: Annotated[str, typer.Argument(help="JSON rows {task_id, prompt} or {task_id, system}.")],
    *,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Publish many static prompts at once, each under its task_id (rtp-llm's MULTI_TASK_PROMPT file).

    Example: foreword cache multi_task_prompt.json
    """
    from foreword.text.static_prompts import read_prompts

    prompts = read_prompts(file)
    # All names are checked first, so that a bad one does not leave half of the file published.
    options.check_name(*(prompt.name for prompt in prompts))
    store = options.open_bank()
    published: list[dict[str, Any]] = []
    before = {prompt.name: current_version(store, prompt.name) for prompt in prompts}
    with on_interrupt(lambda: _interrupt_hint(store, before)):
        lm = options.open_model()
        from foreword.prompts.static import static_task

        with Progress("publishing", len(prompts), "prompts") as progress:
            for prompt in prompts:
                task = static_task(lm, prompt.name, prompt.kind, prompt.text)
                task = store.publish(task, replace=replace, reserved=[lm.name])
                say(f"published {task.ref} ({task.prefix.length} positions)")
                published.append({"task": task.ref, "length": task.prefix.length, "prefix_bytes": task.prefix.nbytes})
                progress.advance()
    total = sum(row["prefix_bytes"] for row in published)
    emit({"tasks": published}, f"published {len(published)} tasks ({total:,} bytes)", json)


def _interrupt_hint(bank: Bank, before: Mapping[str, str | None]) -> str:
    """The hint of an interrupted run: how many prompts of the file are published, and the command that goes on.

    Args:
        before: the version of every task that was served before; ``None`` for a new task.
    """
    count = sum(current_version(bank, name) != version for name, version in before.items())
    return f"{count} of {len(before)} prompts are published; start again: {command_line()}"
