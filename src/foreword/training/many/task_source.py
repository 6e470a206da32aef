"""Whose prefixes are learned: rows by task, from a folder of files or from one file, some at a time."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from foreword.errors import DataError
from foreword.text.rows import Row, data_digest, read_rows

KINDS = (".jsonl", ".csv", ".tsv", ".parquet")


class TaskSource(Protocol):
    """Tasks that are learned apart from one another; only those that are asked for are in memory.

    Attributes:
        names: of the tasks, sorted.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def rows(self, name: str) -> list[Row]:
        """The examples of a task. Raises DataError that names file and line, and for a task that there is not."""
        ...

    def digest(self, name: str) -> str:
        """SHA-256 of the examples of a task."""
        ...


def open_task_source(source: str | Path, task_field: str, check: Callable[[str], None]) -> TaskSource:
    """The tasks of a folder (a file each, whose stem is the name) or of a JSONL file (a field of every row).

    Args:
        check: raises UsageError for a name that no task can have.

    Raises DataError, or what ``check`` raises with where the name stands.
    """
    path = Path(source)
    return FolderSource.of(path, check) if path.is_dir() else JsonlSource.of(path, task_field, check)


@dataclass(frozen=True)
class FolderSource:
    """A file a task.

    Attributes:
        files: by name.
    """

    files: dict[str, Path]

    @classmethod
    def of(cls, path: Path, check: Callable[[str], None]) -> FolderSource:
        files: dict[str, Path] = {}
        for file in sorted(each for each in path.iterdir() if not each.name.startswith(".")):
            if file.suffix.lower() not in KINDS or not file.is_file():
                raise DataError(f"{file} has to end in {', '.join(KINDS)}; a folder of tasks holds one file each.")
            if file.stem in files:
                raise DataError(f"{files[file.stem]} and {file} would be one task; rename one of them.")
            with Row({}, str(file)).error_context():
                check(file.stem)
            files[file.stem] = file
        if not files:
            raise DataError(f"{path} holds no files; give a folder with one file of examples a task.")
        return cls(files)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def rows(self, name: str) -> list[Row]:
        if name not in self.files:
            raise DataError(f"there is no file of task '{name}'; add one, or leave the task out.")
        return read_rows(self.files[name])

    def digest(self, name: str) -> str:
        return data_digest(self.files[name])


@dataclass(frozen=True)
class JsonlSource:
    """A JSONL file whose rows say which task they belong to; only where the rows stand is kept in memory.

    Attributes:
        path: the file.
        task_field: holds the name; it is no part of the example.
        places: by name, two numbers a row: the byte that its line begins at, and the line's number from 1.
    """

    path: Path
    task_field: str
    places: dict[str, array[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, task_field: str, check: Callable[[str], None]) -> JsonlSource:
        found = cls(path, task_field)
        if path.suffix.lower() != ".jsonl":
            raise DataError(f"{path} has to be a folder with a file a task, or end in .jsonl; convert it.")
        try:
            with path.open("rb") as handle:
                begins = 0
                for number, line in enumerate(handle, 1):
                    if line.strip():
                        name, _ = found._read(line, number)
                        if name not in found.places:
                            with Row({}, f"{path} line {number}").error_context():
                                check(name)
                        found.places.setdefault(name, array("q")).extend((begins, number))
                    begins += len(line)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; check the path.") from error
        if not found.places:
            raise DataError(f"{path} has no examples; give at least one line of data.")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.places))

    def rows(self, name: str) -> list[Row]:
        return [row for row, _ in self._lines(name)]

    def digest(self, name: str) -> str:
        found = hashlib.sha256()
        for _, line in self._lines(name):
            found.update(line.strip() + b"\n")
        return found.hexdigest()

    def _lines(self, name: str) -> list[tuple[Row, bytes]]:
        if name not in self.places:
            raise DataError(f"{self.path} has no row of task '{name}'; add some, or leave the task out.")
        found, places = [], self.places[name]
        with self.path.open("rb") as handle:
            for begins, number in zip(places[::2], places[1::2], strict=True):
                handle.seek(begins)
                line = handle.readline()
                found.append((Row(self._read(line, number)[1], f"{self.path} line {number}"), line))
        return found

    def _read(self, line: bytes, number: int) -> tuple[str, dict[str, object]]:
        """The task of a line, and the rest of it."""
        where = f"{self.path} line {number}"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{where} is not JSON in UTF-8 ({error}); write one object a line.") from error
        if not isinstance(values, dict):
            raise DataError(f'{where} is {type(values).__name__}, expected an object such as {{"text": ...}}.')
        name = values.pop(self.task_field, None)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{where} has no task in field '{self.task_field}'; add it, or pass --task-field.")
        return str(name), values
