"""`TaskProgress`: records of the tasks that have ended, and snapshots of those that are being learned."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from foreword.core.json_reader import parse_json, read_document
from foreword.errors import TrainingError
from foreword.training.loop.atomic_write import atomic_write
from foreword.training.loop.concurrent_run import ConcurrentRun


@dataclass(frozen=True)
class TaskProgress:
    """Files in a run folder, one set a process.

    ``ended-RANK.jsonl`` gets a line for every task as it ends. ``live-RANK-N/`` is the newest snapshot of the
    tasks that are being learned; the file ``live-RANK`` names it once it is complete.

    Attributes:
        folder: of the run.
        rank: of the process.
    """

    folder: Path
    rank: int = 0

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Append the record of a task that has ended; it is on the disk when this returns."""
        file = self.folder / f"ended-{self.rank}.jsonl"
        with self._writing(), file.open("ab+") as handle:
            handle.seek(-min(1, file.stat().st_size), os.SEEK_END)
            torn = handle.read() not in (b"", b"\n")  # half a line, of a process that was killed
            handle.write((torn * "\n" + json.dumps(record, ensure_ascii=False) + "\n").encode())
            handle.flush()
            os.fsync(handle.fileno())

    def records(self) -> dict[str, dict[str, Any]]:
        """The last record of every task that has ended, of all processes."""
        records: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob("ended-*.jsonl")):
            for line in file.read_bytes().split(b"\n"):
                with suppress(ValueError):  # the process was killed in the middle of the line
                    record = parse_json(line, constants=True)
                    if isinstance(record, dict) and isinstance(record.get("task"), str) and "status" in record:
                        records[record["task"]] = record
        return records

    def save_snapshot(self, runs: Sequence[ConcurrentRun], digests: Mapping[str, str]) -> None:
        """Write the state of runs in their order; the snapshot before is deleted once this one is complete.

        Args:
            digests: of the inputs of every task, by its name.
        """
        previous = self._newest_snapshot()
        number = int(previous.name.rpartition("-")[2]) + 1 if previous else 1
        folder = self.folder / f"live-{self.rank}-{number}"
        with self._writing():
            shutil.rmtree(folder, ignore_errors=True)  # half of one, of a process that was killed
            folder.mkdir(parents=True)
            states = []
            for index, run in enumerate(runs):
                tensors = {name: value.contiguous() for name, value in run.state_tensors().items()}
                save_file(tensors, folder / f"{index}")
                states.append({"task": run.name, "inputs": digests[run.name], "state": run.state_json()})
            (folder / "lanes.json").write_text(json.dumps(states), encoding="utf-8")
            with atomic_write(self._pointer) as partial:
                partial.write_text(folder.name, encoding="utf-8")
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)

    def snapshot(self) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
        """Task, digest of its inputs, state and tensor file of every run of the newest snapshot."""
        folder = self._newest_snapshot()
        if folder is None:
            return
        try:
            states = parse_json(read_document(folder / "lanes.json"), constants=True)
            runs = [(each["task"], each["inputs"], dict(each["state"])) for each in states]
        except (OSError, ValueError, KeyError, TypeError):
            raise self.damaged() from None
        for index, run in enumerate(runs):
            yield *run, folder / f"{index}"

    def damaged(self) -> TrainingError:
        """The error about a snapshot that cannot be gone on from."""
        folder = self._newest_snapshot()
        return TrainingError(f"{folder} is damaged; remove {self._pointer} to begin the tasks in it anew.")

    def delete_snapshot(self) -> None:
        """Delete the newest snapshot, since no task is being learned any more."""
        folder = self._newest_snapshot()
        self._pointer.unlink(missing_ok=True)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _pointer(self) -> Path:
        """The file with the name of the newest snapshot."""
        return self.folder / f"live-{self.rank}"

    def _newest_snapshot(self) -> Path | None:
        try:
            return self.folder / self._pointer.read_text(encoding="utf-8")
        except OSError:
            return None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise TrainingError(
                f"the run folder {self.folder} cannot be written: {error.strerror}; make room, and pass --resume."
            ) from error
