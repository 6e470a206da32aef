"""``task.json``: everything about one version except its tensors, and the digests of the files beside it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from foreword.bank.document import (
    FORMAT,
    MEND,
    Rule,
    describe,
    dump,
    is_count,
    is_digest,
    is_identity,
    parse_fields,
)
from foreword.bank.names import is_name, is_version, name_version
from foreword.core import Kind, SamplingParams, Task
from foreword.errors import CorruptFile, UsageError

RECORD = "task.json"
CARD = "README.md"
PREFIX = "prefix.safetensors"
_FILES = (CARD, PREFIX)
"""Files that this Foreword can read; a version that lists another would be served wrongly: it is refused."""

_GENERATION = frozenset(field.name for field in dataclasses.fields(SamplingParams))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_verbalizer(value: object) -> bool:
    if value is None:
        return True
    words = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(group, list) and all(map(_is_text, group)) for group in words)


def _is_generation(value: object) -> bool:
    return isinstance(value, dict) and value.keys() <= _GENERATION


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _is_files(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_file, value.values()))


def _is_file(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
        return False
    return is_count(entry["size"]) and is_digest(entry["sha256"])


_RULES: dict[str, Rule] = {
    "format": ("the format version", is_count),
    "name": ("a task name", is_name),
    "version": ("a version such as 0001-0123456789ab", is_version),
    "kind": (f"one of {', '.join(get_args(Kind))}", lambda v: v in get_args(Kind)),
    "method": ("a text", _is_text),
    "text": ("a text or null", _is_optional_text),
    "template": ("a text or null", _is_optional_text),
    "verbalizer": ("an object of label to list of words, or null", _is_verbalizer),
    "generation": (f"an object with some of {', '.join(sorted(_GENERATION))}", _is_generation),
    "provenance": ("an object", lambda v: isinstance(v, dict)),
    "model": ("a model identity with at least one layer", is_identity),
    "created": ("a time in UTC such as 2026-01-31T09:30:00Z", _is_time),
    "files": ("an object of file name to size and sha256", _is_files),
}


def make_record(task: Task, number: int, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of ``task.json`` for a task that becomes version ``number``. Raises `UsageError`."""
    _check_generation(task)
    words = task.verbalizer
    record = {
        "format": FORMAT,
        "name": task.name,
        "version": "",
        "kind": task.kind,
        "method": task.method,
        "text": task.text,
        "template": task.template,
        "verbalizer": None if words is None else {label: list(group) for label, group in words.items()},
        "generation": dict(task.generation),
        "provenance": dict(task.provenance),
        "model": task.prefix.model.to_json(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": {name: dict(entry) for name, entry in files.items()},
    }
    return {**record, "version": name_version(number, content_digest(record))}


def write_record(record: Mapping[str, Any]) -> bytes:
    return (dump(record, "task.json", indent=2) + "\n").encode()


def content_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 over the record as compact JSON with keys in their order and an empty ``version``.

    It covers the digests of the files, so the twelve digits in a version's name cover the whole version.
    """
    return hashlib.sha256(dump({**record, "version": ""}, "task.json").encode()).hexdigest()


def parse_record(data: bytes, where: str, name: str, version: str | None = None) -> dict[str, Any]:
    """Check the bytes of a ``task.json`` for task ``name``. Raises `CorruptFile`."""
    record = parse_fields(data, _RULES, where)
    _check_files(record["files"], where)
    expected = name_version(int(record["version"].partition("-")[0]), content_digest(record))
    if record["version"] != expected:
        raise CorruptFile(f"{where} was altered: expected version {expected}, found {record['version']}; {MEND}.")
    for field, wanted in (("name", name), ("version", version)):
        if wanted is not None and record[field] != wanted:
            raise CorruptFile(
                f"{where} is in the wrong place: expected {field} {wanted}, found {record[field]}; {MEND}."
            )
    return record


def _check_files(files: Mapping[str, Any], where: str) -> None:
    if PREFIX not in files:
        raise CorruptFile(f"{where}: expected {PREFIX} among its files, found none; {MEND}.")
    if unknown := sorted(files.keys() - set(_FILES)):
        raise CorruptFile(
            f"{where}: expected only the files {', '.join(_FILES)}, found "
            f"{describe(', '.join(unknown))}; it was made by a newer Foreword, so upgrade foreword."
        )


def _check_generation(task: Task) -> None:
    if unknown := sorted(task.generation.keys() - _GENERATION):
        raise UsageError(
            f"task {task.name!r} has generation defaults that do not exist: {', '.join(unknown)}; use some "
            f"of {', '.join(sorted(_GENERATION))}."
        )
