"""``foreword cache``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options
from foreword.cli.interruption import command_line, going_on, served
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank


def cache(
    file: Annotated[str, typer.Argument(help="JSON rows {task_id, prompt} or {task_id, system}.")],
    replace: options.Replace = False,
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """Publish many static prompts at once, each under its task_id (rtp-llm's MULTI_TASK_PROMPT file).

    Example: foreword cache multi_task_prompt.json
    """
    from foreword.text.static_prompts import read_prompts

    prompts = read_prompts(file)
    from foreword.bank.bank import check_free

    # All names before any work: half a file published would be worse than none.
    for prompt in prompts:
        check_free(prompt.name, [model or options.default_model()])
    store = options.open_bank(bank)
    published: list[dict[str, Any]] = []
    before = {prompt.name: served(store, prompt.name) for prompt in prompts}
    with going_on(lambda: _left(store, before)):
        lm = options.open_model(model, dtype, device, trust_remote_code)
        from foreword.prompts.static import static_task

        with Progress("publishing", len(prompts), "prompts") as progress:
            for prompt in prompts:
                task = static_task(lm, prompt.name, prompt.kind, prompt.text)
                task = store.publish(task, replace=replace, reserved=[lm.name])
                options.say(f"published {task.ref} ({task.prefix.length} positions)")
                published.append({"task": task.ref, "length": task.prefix.length, "prefix_bytes": task.prefix.nbytes})
                progress.advance()
    total = sum(row["prefix_bytes"] for row in published)
    options.emit({"tasks": published}, f"published {len(published)} tasks ({total:,} bytes)", json)


def _left(bank: Bank, before: Mapping[str, str | None]) -> str:
    """How much of a file was published when it was stopped: the bank knows it better than whoever was interrupted.

    Args:
        before: the versions that were served when it began, by task.
    """
    count = sum(served(bank, name) != version for name, version in before.items())
    return f"{count} of {len(before)} prompts are published; start again: {command_line()}"
