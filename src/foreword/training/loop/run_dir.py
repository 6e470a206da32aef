"""`RunDir`: the folder of a run, with its recipe, checkpoints, history and summary."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core.json_reader import parse_json, read_document
from foreword.errors import TrainingError
from foreword.training.loop.atomic_write import atomic_write
from foreword.training.loop.distributed import is_main_process

# Key of ``recipe.json`` with the settings as they were given, which a resumed run is compared with.
_AS_GIVEN = "as_given"
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What values of wrong types or lengths raise where they are taken up; PyTorch raises RuntimeError."""
# Settings of the length of a run, which may be prolonged.
_LENGTH = ("max_steps", "epochs")


@dataclass(frozen=True)
class RunDir:
    """An open run folder; make one with `open`."""

    path: Path

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        used: Mapping[str, Any] | None = None,
        steps: int | None = None,
    ) -> RunDir:
        """Make the folder of a new run, or reopen that of a run to be resumed.

        Args:
            settings: all that must be the same for a run to be resumed.
            used: what they came to, such as the learning rate where none was given; for people who read the file.
            steps: length of a run that may be prolonged; its number of steps and epochs may then differ.

        Raises TrainingError rather than mixing two runs.
        """
        run_dir = cls(Path(path))
        if not is_main_process():
            return run_dir
        run_dir.check(resume=resume)
        if resume:
            run_dir._check_same(settings, steps)
        if not resume or (steps is not None and steps > (run_dir._recorded_steps() or steps)):
            run_dir._write("recipe.json", settings if used is None else {**settings, **used, _AS_GIVEN: settings})
        return run_dir

    def check(self, *, resume: bool) -> None:
        """Raise TrainingError for a new run in the folder of another, or if there is none to resume."""
        there = self._recipe.is_file()
        if there and not resume:
            raise TrainingError(f"{self.path} holds a run already; pass --resume to go on with it, or another --out.")
        if resume and not there:
            raise TrainingError(f"{self.path} holds no run to resume; leave out --resume.")

    def subdir(self, name: str) -> RunDir:
        """The folder inside for a run that is part of this one, such as a member of an ensemble."""
        return RunDir(self.path / name)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; ``None`` if the run was stopped before its first."""
        complete = filter(_is_complete, self.checkpoints.glob("checkpoint-[0-9]*"))
        steps = {path: path.name.removeprefix("checkpoint-") for path in complete}
        numbered = {path: int(step) for path, step in steps.items() if re.fullmatch("[0-9]{1,15}", step)}
        return max(numbered, key=lambda path: numbered[path], default=None)

    def delete_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run whose result is stored elsewhere."""
        if is_main_process():
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write ``state.json``: the state of a search, or the result of a finished part, to resume from."""
        self._write("state.json", state)

    def read_state(self) -> dict[str, Any] | None:
        """The state that `write_state` saved; ``None`` if there is none. Raises TrainingError for a damaged file."""
        file = self.path / "state.json"
        data = _read_json(file)
        if file.is_file() and not isinstance(data, dict):
            raise TrainingError(f"{file} is damaged, so the run cannot be resumed; use another --out.")
        return data

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Turn whatever goes wrong while a run takes up what `read_state` gave into a TrainingError about the file."""
        try:
            yield
        except DAMAGED as error:
            file = self.path / "state.json"
            raise TrainingError(f"{file} is damaged, so the run cannot be resumed; use another --out.") from error

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write ``history.json``, the Trainer's log: loss, learning rate and metrics by step."""
        self._write("history.json", {"log": list(history)})

    def read_history(self) -> list[dict[str, Any]]:
        """The training log that `write_history` saved; empty if there is none."""
        data = _read_json(self.path / "history.json")
        log = data.get("log") if isinstance(data, dict) else None
        return [entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else []

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write("summary.json", summary)

    @property
    def _recipe(self) -> Path:
        return self.path / "recipe.json"

    def _check_same(self, settings: Mapping[str, Any], steps: int | None) -> None:
        data = _read_json(self._recipe)
        if not isinstance(data, dict):
            raise TrainingError(f"{self._recipe} is damaged, so the run cannot be resumed; use another --out.")
        data = data.get(_AS_GIVEN, data)
        changed = [key for key in {**settings, **data} if data.get(key) != settings.get(key)]
        recorded = self._recorded_steps()
        if steps is not None and recorded is not None:
            changed = [key for key in changed if key not in _LENGTH]
            if steps < recorded:
                raise TrainingError(
                    f"{self.path} was started with {recorded} steps, now {steps}; a run can be prolonged, not "
                    "shortened: give more --max-steps or --epochs, or another --out."
                )
        if changed:
            raise TrainingError(
                f"{self.path} was started with another {changed[0]} ({data.get(changed[0])!r}, now "
                f"{settings[changed[0]]!r}); resume with the same settings, or use another --out."
            )

    def _recorded_steps(self) -> int | None:
        """Steps of the run as its recipe has them; ``None`` for a recipe that leaves them to a default."""
        data = _read_json(self._recipe)
        steps = data.get("max_steps") if isinstance(data, dict) else None
        return steps if isinstance(steps, int) else None

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False))

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically, so that it is whole even if the process is killed meanwhile."""
        if not is_main_process():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path / name) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise TrainingError(
                f"the run folder {self.path} cannot be written: {error.strerror}; use another --out."
            ) from error


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer writes its state last; a process killed meanwhile leaves none, or half of it."""
    return isinstance(_read_json(checkpoint / "trainer_state.json"), dict)


def _read_json(file: Path) -> Any:
    try:
        return parse_json(read_document(file), constants=True)
    except (OSError, ValueError):
        return None
