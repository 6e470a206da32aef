"""One version of a task as one folder: ``task.json``, ``README.md`` and ``prefix.safetensors``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from foreword.bank.card import write_card
from foreword.bank.digests import check_file, file_sha256
from foreword.bank.document import MEND
from foreword.bank.durable import sync_folder, write_file
from foreword.bank.prefix_file import read_header, read_prefix, write_prefix
from foreword.bank.record import CARD, PREFIX, RECORD, make_record, parse_record, write_record
from foreword.core import ModelIdentity, Task
from foreword.errors import BankError, CorruptFile

__all__ = [
    "check_version",
    "read_header",
    "read_prefix",
    "read_record",
    "read_version",
    "write_prefix",
    "write_version",
]


def write_version(folder: Path, task: Task, *, number: int = 1) -> Task:
    """Write a version into an existing empty folder, fsynced.

    Args:
        folder: its name need not be the version, which is known only when all is written.
        task: what to write; its ``version`` is ignored.
        number: counts the versions of the task, from 1.

    Returns:
        the task with the ``version`` that names this content.

    Raises:
        UsageError: something that JSON or the format cannot hold.
        OSError: the disk is full or not writable.
    """
    write_prefix(folder / PREFIX, task.prefix, method=task.method, provenance=task.provenance)
    write_file(folder / CARD, write_card(task).encode())
    record = make_record(task, number, {name: _entry(folder / name) for name in (CARD, PREFIX)})
    write_file(folder / RECORD, write_record(record))
    sync_folder(folder)
    return dataclasses.replace(task, version=record["version"])


def read_record(folder: Path, name: str, version: str | None = None) -> dict[str, Any]:
    """The checked content of ``task.json``. Raises `CorruptFile`."""
    path = folder / RECORD
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFile(f"{path}: expected the description of a version, found none; {MEND}.") from error
    return parse_record(data, str(path), name, version)


def read_version(folder: Path, name: str, version: str | None = None) -> Task:
    """Read the version in ``folder`` as task ``name``.

    Only what is served is checked, so that an edited ``README.md`` takes no task down; `check_version`
    checks all.

    Raises:
        CorruptFile: anything missing, altered, malformed or from a newer Foreword.
    """
    record = read_record(folder, name, version)
    check_file(folder / PREFIX, **record["files"][PREFIX])
    prefix = read_prefix(folder / PREFIX)
    if prefix.model != ModelIdentity.from_json(record["model"]):
        raise CorruptFile(f"{folder}: task.json and the prefix name different models; {MEND}.")
    words = record["verbalizer"]
    return Task(
        name=name,
        method=record["method"],
        prefix=prefix,
        kind=record["kind"],
        text=record["text"],
        template=record["template"],
        verbalizer=None if words is None else {label: tuple(group) for label, group in words.items()},
        generation=record["generation"],
        provenance=record["provenance"],
        version=record["version"],
    )


def check_version(folder: Path, name: str, version: str | None = None) -> list[str]:
    """Everything wrong with a version, read anew from the disk; empty when it is whole."""
    try:
        record = read_record(folder, name, version)
    except CorruptFile as error:
        return [str(error)]
    problems = [f"{path}: not listed in task.json; delete it." for path in _unlisted(folder, record["files"])]
    for file, entry in record["files"].items():
        try:
            check_file(folder / file, **entry, fresh=True)
        except CorruptFile as error:
            problems.append(str(error))
    try:
        read_version(folder, name, version)
    except BankError as error:
        problems.append(str(error))
    return list(dict.fromkeys(problems))


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path, fresh=True)}


def _unlisted(folder: Path, files: dict[str, Any]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name not in files and path.name != RECORD)
