"""Run folders, as the commands that learn name them, fill them and go on with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli.interruption import command_line
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.core import Task

# The name that a task has in its run folder, until it is published under one of its own.
_NAME = "run"


def left(out: str) -> str:
    """What a run leaves behind that is stopped, and how it goes on."""
    if not (Path(out) / "recipe.json").is_file():
        return f"nothing was written; start again: {command_line()}"
    return f"what was learned is in {out}; go on with: {command_line('--resume', '--out', out)}"


def keep(task: Task, out: Path) -> None:
    """Write a task into its run folder; a resumed run writes it anew."""
    import shutil

    from foreword.bank.format import write_version

    folder = out / "task"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_version(folder, replace(task, name=_NAME))


def kept(out: Path, name: str) -> Task:
    """The task of a finished run, under a name of its own. Raises UsageError for a folder that holds none."""
    from foreword.bank.format import read_version

    if (out / "model").is_dir():
        raise UsageError(
            f"{out} holds a model of its own, which no task can carry; load it with --model {out / 'model'}."
        )
    if not (out / "task").is_dir():
        raise UsageError(f"{out} holds no finished run; give the folder that foreword train --out wrote.")
    return replace(read_version(out / "task", _NAME), name=name)
