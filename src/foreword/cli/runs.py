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


def resume_hint(folder: str) -> str:
    """What a run that is stopped has written into its folder, and the command that goes on with it."""
    if not (Path(folder) / "recipe.json").is_file():
        return f"nothing was written; start again: {command_line()}"
    return f"what was learned is in {folder}; go on with: {command_line('--resume', '--out', folder)}"


def publish_hint(ref: str | None, folder: Path) -> str:
    """Under which name and version a task was published; if it was not, the command that publishes it."""
    return f"published {ref}" if ref is not None else f"not published; foreword publish NAME --run {folder}"


def write_task(task: Task, folder: Path) -> None:
    """Write a task into its run folder; a resumed run replaces it."""
    import shutil

    from foreword.bank.version_folder import write_version

    target = folder / "task"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_version(target, replace(task, name=_NAME))


def read_task(folder: Path, name: str) -> Task:
    """The task of a finished run, under a name of its own. Raises UsageError for a folder that holds none."""
    from foreword.bank.version_folder import read_version

    if (folder / "model").is_dir():
        raise UsageError(
            f"{folder} holds a model of its own, which no task can carry; load it with --model {folder / 'model'}."
        )
    if not (folder / "task").is_dir():
        raise UsageError(f"{folder} holds no finished run; give the folder that foreword train --out wrote.")
    return replace(read_version(folder / "task", _NAME), name=name)
