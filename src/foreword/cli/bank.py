"""``foreword bank``."""

from __future__ import annotations

from typing import Annotated

import typer

from foreword.bank.time_to_live import format_time
from foreword.cli.completion import complete_task
from foreword.cli.compose import compose
from foreword.cli.help import Application
from foreword.cli.interruption import command_line, on_interrupt
from foreword.cli.options import BankRoot, Json, Replace, emit, open_bank, say
from foreword.cli.split import split
from foreword.errors import CorruptFile
from foreword.home import default_model

app = Application("Tasks and their versions.\n\nExample: foreword bank list; foreword bank show reviews")

Name = Annotated[str, typer.Argument(help="Name of the task.", autocompletion=complete_task)]


@app.command("list")
def list_tasks(bank: BankRoot = None, json: Json = False) -> None:
    """All tasks: served version, kind, positions, size, labels, metric, base model and date.

    Example: foreword bank list
    """
    store = open_bank(bank)
    from foreword.cli.task_listing import row, table

    rows = []
    for name in store.names():
        try:
            rows.append(row(store, store.describe(name)))
        except CorruptFile as error:  # one damaged task must not hide the others
            say(f"foreword: {error}")
            rows.append({"name": name, "version": "damaged", "kind": "", "method": ""})
    emit({"tasks": rows}, table(rows) if rows else "the bank is empty", json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Task, or task@version.", autocompletion=complete_task)],
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Everything recorded about a version, and the versions there are.

    Example: foreword bank show support@3
    """
    store = open_bank(bank)
    record = store.describe(name)
    split, expires = store.split(record["name"]), store.expires(name)
    found = {**record, "versions": store.versions(record["name"])}
    found |= {"split": dict(split.weights)} if split is not None else {}
    found |= {"expires": format_time(expires)} if expires is not None else {}
    from foreword.cli.task_listing import page

    emit(found, page(store, found), json)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One task only.", autocompletion=complete_task)] = None,
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Check sizes and digests of every file.

    Example: foreword bank verify
    """
    problems = open_bank(bank).verify(name)
    if json or not problems:
        emit({"problems": problems}, "everything checks", json)
    if problems:
        raise CorruptFile(" ".join(problems))


@app.command()
def rollback(
    name: Name,
    version: Annotated[str | None, typer.Option(help="Version to serve.", show_default="the one before")] = None,
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Serve an earlier version, after every byte of it was checked.

    Example: foreword bank rollback support --version 2
    """
    served = open_bank(bank).rollback(name, version)
    emit({"task": f"{name}@{served}"}, f"{name} is served as {served}", json)


@app.command()
def remove(
    name: Name,
    version: Annotated[str | None, typer.Option(help="One version only.", show_default="the whole task")] = None,
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Remove a task, or one version that is not served. Interrupted, it is finished by the same command.

    Example: foreword bank remove support --version 1
    """
    store = open_bank(bank)
    with on_interrupt(lambda: f"it is there whole or not at all; finish with: {command_line()}"):
        store.remove(name, version)
    removed = name if version is None else f"{name}@{version}"
    emit({"removed": removed}, f"removed {removed}", json)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Remove tasks whose time to live is over, and what interrupted commands left.

    A task with a version that never expires stays, and so does what a command at work is writing.

    Example: foreword bank prune --dry-run
    """
    store = open_bank(bank)
    with on_interrupt(lambda: f"go on with: {command_line()}"):
        removed = store.prune(dry_run=dry_run)
        swept = store.sweep(dry_run=dry_run)
    would = "would be " if dry_run else ""
    lines = [f"{name} {would}removed, its time to live is over" for name in removed]
    lines += [f"{path} {would}deleted, an interrupted command left it" for path in swept]
    emit({"removed": removed, "swept": swept}, "\n".join(lines) or "nothing has expired, and nothing was left", json)


app.command()(split)
app.command()(compose)


@app.command()
def ensemble(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Learned tasks or task@version, two or more.", metavar="TASK", autocompletion=complete_task
        ),
    ],
    publish: Annotated[str, typer.Option(help="Name of the new task.")],
    vote: Annotated[
        bool, typer.Option("--vote", help="Answer by a vote of the members.", show_default="mean probability")
    ] = False,
    replace: Replace = False,
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Combine learned tasks with the same template and labels: all answer, the mean or a vote decides.

    Example: foreword bank ensemble reviews@1 reviews@2 reviews@3 --publish reviews-3 --vote
    """
    from foreword.bank.bank import check_free
    from foreword.prompts.ensemble import ensemble as combined

    store, reserved = open_bank(bank), [default_model()]
    check_free(publish, reserved)
    made = combined(publish, [store.load(ref) for ref in tasks], "vote" if vote else "mean")
    task = store.publish(made, replace=replace, reserved=reserved)
    data = {"task": task.ref, "members": len(tasks), "combine": task.combine, "bytes": task.nbytes}
    emit(data, f"published {task.ref} ({len(tasks)} members, {task.combine}, {task.nbytes:,} bytes)", json)
