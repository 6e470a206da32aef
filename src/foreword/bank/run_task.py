"""The task of a run in its run folder, in the format of a bank's version; `foreword publish --run` reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foreword.bank.version_folder import read_version, write_version
from foreword.core import Task
from foreword.core.whole_folder import whole_folder
from foreword.errors import UsageError

# The name of every task in a run folder; `read_task` replaces it.
_NAME = "run"


def write_task(task: Task, folder: Path) -> None:
    """Write the task of a run into ``task`` in its folder, in place of an earlier one."""
    with whole_folder(folder / "task") as partial:
        write_version(partial, replace(task, name=_NAME))


def read_task(folder: Path, name: str) -> Task:
    """The task of a finished run, under another name. Raises UsageError for a folder without one."""
    if (folder / "model").is_dir():
        raise UsageError(
            f"{folder} holds a model of its own, which no task can carry; load it with --model {folder / 'model'}."
        )
    if not (folder / "task").is_dir():
        raise UsageError(f"{folder} holds no finished run; give the folder that foreword train --out wrote.")
    return replace(read_version(folder / "task", _NAME), name=name)
