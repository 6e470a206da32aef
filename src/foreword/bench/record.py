"""`Record`: the metrics of one case and what they cannot be read without, kept as one JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.bank.durable import durable_write, make_folders
from foreword.core.json_reader import parse_json
from foreword.errors import BenchError
from foreword.version import __version__


@dataclass(frozen=True)
class Record:
    """What was measured of a case: its ``metrics`` (``found`` in the file), and the ``environment`` (``facts`` there).

    Raises:
        BenchError: a metric is not a finite number.
    """

    workload: str
    key: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            json.dumps(self.to_json(), allow_nan=False)
        except ValueError as error:
            raise BenchError(f"{self.key} has a metric that is not a finite number, so it is not kept.") from error

    def to_json(self) -> dict[str, Any]:
        case = {"workload": self.workload, "key": self.key, "settings": self.settings}
        return {**case, "facts": self.environment, "found": self.metrics}


@dataclass(frozen=True)
class Results:
    """The folder of records: ``<folder>/<workload>/<key>.json``, with dashes for the slashes of the key."""

    folder: Path

    def path(self, workload: str, key: str) -> Path:
        return self.folder / workload / f"{key.replace('/', '-')}.json"

    def find(self, workload: str, key: str) -> Record | None:
        """The record of a case, ``None`` if it was not measured. Raises BenchError if the file is not a record."""
        path = self.path(workload, key)
        return _read(path) if path.is_file() else None

    def all(self, workload: str) -> list[Record]:
        """Every record of a workload, sorted by file name."""
        return [_read(path) for path in sorted((self.folder / workload).glob("*.json"))]

    def keep(self, record: Record) -> None:
        write_json(self.path(record.workload, record.key), record.to_json())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all. Raises BenchError if it cannot be written."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        make_folders(path.parent)
        durable_write(path, text.encode())
    except OSError as error:
        raise BenchError(f"results cannot be written to {path}: {error.strerror}; give another folder.") from error


def environment(versions: Mapping[str, str]) -> dict[str, Any]:
    """Date, commit, machine and versions of this run; ``versions`` are of what the participants run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    machine = {
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    commit = _git("rev-parse", "--short=12", "HEAD")  # of the checkout that this code runs from, if it is in one
    changed = "+" if commit and _git("status", "--porcelain", "--", ".") else ""
    run = {"started": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit and commit + changed}
    known = {"foreword": __version__, "python": platform.python_version(), **versions}
    return {**run, "versions": known, "machine": machine}


def _read(path: Path) -> Record:
    try:
        data = parse_json(path.read_bytes(), constants=True)
        return Record(data["workload"], data["key"], data["settings"], data["facts"], data["found"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchError(f"{path} is no benchmark record ({error!r}); remove it, or measure again.") from error


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    return None
