"""`TaskProgress`: what became of every task of a run of many, and where those stand that are being learned."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from foreword.errors import TrainingError
from foreword.training.loop.concurrent_run import ConcurrentRun


@dataclass(frozen=True)
class TaskProgress:
    """Files in a run folder, one set a process.

    ``ended-RANK.jsonl`` gets a line for every task as it ends. ``live-RANK-N/`` is the newest snapshot of those that
    are being learned: `place` names it, so that it is seen whole or not at all.

    Attributes:
        folder: of the run.
        rank: of the process.
    """

    folder: Path
    rank: int = 0

    def end(self, record: Mapping[str, Any]) -> None:
        """Write down what became of a task; it is on the disk when this returns."""
        with self._writing(), (self.folder / f"ended-{self.rank}.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def ended(self) -> dict[str, dict[str, Any]]:
        """The last record of every task that has ended, in any process."""
        found: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob("ended-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the process was killed in the middle of the line
                found[record["task"]] = record
        return found

    def keep(self, lanes: Sequence[ConcurrentRun], inputs: Mapping[str, str]) -> None:
        """Take a snapshot of lanes in their order; the one before is dropped once this one is whole."""
        before = self._kept()
        folder = self.folder / f"live-{self.rank}-{before[0] + 1 if before else 1}"
        with self._writing():
            shutil.rmtree(folder, ignore_errors=True)  # half of one, of a process that was killed
            folder.mkdir(parents=True)
            states = []
            for number, lane in enumerate(lanes):
                save_file(
                    {name: value.contiguous() for name, value in lane.state_tensors().items()}, folder / f"{number}"
                )
                states.append({"task": lane.name, "inputs": inputs[lane.name], "state": lane.state_json()})
            (folder / "lanes.json").write_text(json.dumps(states), encoding="utf-8")
            partial = self.folder / f".live-{self.rank}"
            partial.write_text(folder.name, encoding="utf-8")
            partial.replace(self._place)
        if before is not None:
            shutil.rmtree(before[1], ignore_errors=True)

    def kept(self) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
        """Task, digest of its inputs, state and tensor file of every lane of the newest snapshot."""
        found = self._kept()
        if found is None:
            return
        try:
            states = json.loads((found[1] / "lanes.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise TrainingError(f"{found[1]} is damaged; remove {self._place} to begin the tasks in it anew.") from None
        for number, each in enumerate(states):
            yield each["task"], each["inputs"], each["state"], found[1] / f"{number}"

    @staticmethod
    def restore(lane: ConcurrentRun, state: Mapping[str, Any], file: Path) -> None:
        """Let a lane go on from a snapshot."""
        lane.load_state(state, load_file(file))

    def drop(self) -> None:
        """Nothing is being learned any more."""
        found = self._kept()
        self._place.unlink(missing_ok=True)
        if found is not None:
            shutil.rmtree(found[1], ignore_errors=True)

    @property
    def _place(self) -> Path:
        return self.folder / f"live-{self.rank}"

    def _kept(self) -> tuple[int, Path] | None:
        try:
            name = self._place.read_text(encoding="utf-8")
        except OSError:
            return None
        return int(name.rpartition("-")[2]), self.folder / name

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise TrainingError(
                f"the run folder {self.folder} cannot be written: {error.strerror}; make room, and pass --resume."
            ) from error
