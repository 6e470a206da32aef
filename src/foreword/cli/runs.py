"""Tasks in run folders, and hints how to resume a run and how to publish its task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli.interruption import command_line
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.core import Task

# The name of every task in a run folder; `read_task` replaces it.
_NAME = "run"


def resume_hint(folder: str) -> str:
    """For `on_interrupt`: whether the run folder holds a checkpoint, and the command that resumes the run."""
    if not (Path(folder) / "recipe.json").is_file():
        return f"nothing was written; start again: {command_line()}"
    return f"what was learned is in {folder}; go on with: {command_line('--resume', '--out', folder)}"


def publish_hint(ref: str | None, folder: Path) -> str:
    """The version that was published; without one (``None``), the command that publishes the task of a run."""
    return f"published {ref}" if ref is not None else f"not published; foreword publish NAME --run {folder}"


def write_task(task: Task, folder: Path) -> None:
    """Write the task of a run into ``task`` in its folder, in place of an earlier one."""
    import shutil

    from foreword.bank.version_folder import write_version

    target = folder / "task"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_version(target, replace(task, name=_NAME))


def read_task(folder: Path, name: str) -> Task:
    """The task of a finished run, under another name. Raises UsageError for a folder without one."""
    from foreword.bank.version_folder import read_version

    if (folder / "model").is_dir():
        raise UsageError(
            f"{folder} holds a model of its own, which no task can carry; load it with --model {folder / 'model'}."
        )
    if not (folder / "task").is_dir():
        raise UsageError(f"{folder} holds no finished run; give the folder that foreword train --out wrote.")
    return replace(read_version(folder / "task", _NAME), name=name)
