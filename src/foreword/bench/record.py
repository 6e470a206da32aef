"""`Record`: one cell's figures with all that must be known about them, kept as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import BenchError


@dataclass(frozen=True)
class Record:
    """What was measured.

    Attributes:
        workload, key: of the cell.
        settings: of the cell.
        facts: machine, versions, commit and time, see `foreword.bench.facts`.
        found: the figures.
    """

    workload: str
    key: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    found: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            json.dumps(self.to_json(), allow_nan=False)
        except ValueError as error:
            raise BenchError(f"{self.key} has a figure that is no number, so it is not kept.") from error

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "key": self.key,
            "settings": self.settings,
            "facts": self.facts,
            "found": self.found,
        }


@dataclass(frozen=True)
class Results:
    """The folder where records are kept: ``<folder>/<workload>/<key>.json``, slashes of the key as dashes."""

    folder: Path

    def path(self, workload: str, key: str) -> Path:
        return self.folder / workload / f"{key.replace('/', '-')}.json"

    def find(self, workload: str, key: str) -> Record | None:
        """The record of a cell, if it has been measured. Raises BenchError if the file is not one."""
        path = self.path(workload, key)
        return _read(path) if path.is_file() else None

    def all(self, workload: str) -> list[Record]:
        """Every record of a workload, by file name."""
        return [_read(path) for path in sorted((self.folder / workload).glob("*.json"))]

    def keep(self, record: Record) -> None:
        """Write a record, whole or not at all. Raises BenchError if the folder cannot be written."""
        write_json(self.path(record.workload, record.key), record.to_json())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all. Raises BenchError if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise BenchError(f"results cannot be written to {path}: {error.strerror}; give another folder.") from error


def _read(path: Path) -> Record:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Record(**data)
    except (OSError, ValueError, TypeError) as error:
        raise BenchError(f"{path} is no benchmark record ({error}); remove it, or measure again.") from error
