"""Hints how to resume a run and how to publish its task."""

from __future__ import annotations

from pathlib import Path

from foreword.cli.interruption import command_line


def resume_hint(folder: str) -> str:
    """For `on_interrupt`: whether the run folder holds a checkpoint, and the command that resumes the run."""
    if not (Path(folder) / "recipe.json").is_file():
        return f"nothing was written; start again: {command_line()}"
    return f"what was learned is in {folder}; go on with: {command_line('--resume', '--out', folder)}"


def publish_hint(ref: str | None, folder: Path) -> str:
    """The version that was published; without one (``None``), the command that publishes the task of a run."""
    return f"published {ref}" if ref is not None else f"not published; foreword publish NAME --run {folder}"
