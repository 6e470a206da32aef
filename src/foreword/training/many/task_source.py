"""`TaskSource`: the rows of every task, from a folder with a file a task or from one JSONL file."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from foreword.core.json_reader import InvalidJson, parse_json
from foreword.errors import DataError
from foreword.text.delimited import Layout
from foreword.text.row import Row
from foreword.text.rows import Source, data_digest, read_rows, source_name

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class TaskSource(Protocol):
    """Rows by task; only the rows of a requested task are read into memory.

    Attributes:
        names: of the tasks, sorted.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def rows(self, name: str) -> list[Row]:
        """The examples of a task. Raises DataError that names file and line, and for an unknown task."""
        ...

    def digest(self, name: str) -> str:
        """SHA-256 of the examples of a task."""
        ...


def open_task_source(
    source: Source, task_field: str, check: Callable[[str], None], layout: Layout | None = None
) -> TaskSource:
    """The tasks of a folder (a file each, whose stem is the name), or of a JSONL file or rows in memory (a field of
    every row).

    Args:
        check: raises UsageError for a name that no task can have.
        layout: of CSV and TSV files in a folder.

    Raises DataError, SettingError for a layout of anything else, or what ``check`` raises with where the name stands.
    """
    layout = layout or Layout()
    if isinstance(source, str | Path) and Path(source).is_dir():
        return FolderSource.open(Path(source), check, layout)
    layout.require_none(source_name(source))
    if not isinstance(source, str | Path):
        return MemorySource.open(source, task_field, check)
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no {source}; give a folder with one file of examples a task, or one JSONL file.")
    return JsonlSource.open(path, task_field, check)


@dataclass(frozen=True)
class FolderSource:
    """A folder with one file of rows a task.

    Attributes:
        files: by the task's name, the file's stem.
        layout: of those that are CSV or TSV.
    """

    files: dict[str, Path]
    layout: Layout = field(default_factory=Layout)

    @classmethod
    def open(cls, path: Path, check: Callable[[str], None], layout: Layout) -> FolderSource:
        files: dict[str, Path] = {}
        for file in sorted(each for each in path.iterdir() if not each.name.startswith(".")):
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                raise DataError(f"{file} has to end in {', '.join(SUFFIXES)}; a folder of tasks holds one file each.")
            if file.stem in files:
                raise DataError(f"{files[file.stem]} and {file} would be one task; rename one of them.")
            with Row({}, str(file)).error_context():
                check(file.stem)
            files[file.stem] = file
        if not files:
            raise DataError(f"{path} holds no files; give a folder with one file of examples a task.")
        return cls(files, layout)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def rows(self, name: str) -> list[Row]:
        if name not in self.files:
            raise DataError(f"there is no file of task '{name}'; add one, or leave the task out.")
        return read_rows(self.files[name], self.layout)

    def digest(self, name: str) -> str:
        return data_digest(self.files[name])


@dataclass(frozen=True)
class JsonlSource:
    """A JSONL file with a field that names the task of every row; memory holds only an index of its lines.

    Attributes:
        path: the file.
        task_field: the field with the task's name; it is removed from the row.
        index: by task, two numbers a row: the byte offset of its line, and the line's number from 1.
    """

    path: Path
    task_field: str
    index: dict[str, array[int]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, task_field: str, check: Callable[[str], None]) -> JsonlSource:
        source = cls(path, task_field)
        if path.suffix.lower() != ".jsonl":
            raise DataError(f"{path} has to be a folder with a file a task, or end in .jsonl; convert it.")
        try:
            with path.open("rb") as handle:
                offset = 0
                for number, line in enumerate(handle, 1):
                    if line.strip():
                        name, _ = source._parse(line, number)
                        if name not in source.index:
                            with Row({}, f"{path} line {number}").error_context():
                                check(name)
                        source.index.setdefault(name, array("q")).extend((offset, number))
                    offset += len(line)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; check the path.") from error
        if not source.index:
            raise DataError(f"{path} has no examples; give at least one line of data.")
        return source

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.index))

    def rows(self, name: str) -> list[Row]:
        return [row for row, _ in self._lines(name)]

    def digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for _, line in self._lines(name):
            digest.update(line.strip() + b"\n")
        return digest.hexdigest()

    def _lines(self, name: str) -> list[tuple[Row, bytes]]:
        if name not in self.index:
            raise DataError(f"{self.path} has no row of task '{name}'; add some, or leave the task out.")
        lines, index = [], self.index[name]
        with self.path.open("rb") as handle:
            for offset, number in zip(index[::2], index[1::2], strict=True):
                handle.seek(offset)
                line = handle.readline()
                lines.append((Row(self._parse(line, number)[1], f"{self.path} line {number}"), line))
        return lines

    def _parse(self, line: bytes, number: int) -> tuple[str, dict[str, object]]:
        """The task of a line, and its row."""
        where = f"{self.path} line {number}"
        try:
            values = parse_json(line, constants=True)
        except InvalidJson as error:
            raise DataError(f"{where} is not JSON in UTF-8 ({error}); write one object a line.") from error
        if not isinstance(values, dict):
            raise DataError(f'{where} is {type(values).__name__}, expected an object such as {{"text": ...}}.')
        return _split_task(values, self.task_field, where)


@dataclass(frozen=True)
class MemorySource:
    """Rows in memory, with a field that names the task of every row.

    Attributes:
        by_task: the rows of every task, without that field.
    """

    by_task: dict[str, list[Row]]

    @classmethod
    def open(cls, source: Source, task_field: str, check: Callable[[str], None]) -> MemorySource:
        by_task: dict[str, list[Row]] = {}
        for row in read_rows(source):
            name, values = _split_task(row.values, task_field, row.where)
            if name not in by_task:
                with row.error_context():
                    check(name)
            by_task.setdefault(name, []).append(Row(values, row.where))
        return cls(by_task)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.by_task))

    def rows(self, name: str) -> list[Row]:
        if name not in self.by_task:
            raise DataError(f"there is no row of task '{name}'; add some, or leave the task out.")
        return self.by_task[name]

    def digest(self, name: str) -> str:
        return data_digest(self.rows(name))


def _split_task(values: dict[str, Any], task_field: str, where: str) -> tuple[str, dict[str, Any]]:
    """The task that a row names, and its other fields."""
    name = values.get(task_field)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"{where} has no task in field '{task_field}'; add it, or pass --task-field.")
    return str(name), {field: value for field, value in values.items() if field != task_field}
