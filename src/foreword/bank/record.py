"""``task.json``: everything about one version except its tensors, and the digests of the files beside it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from foreword.bank.json_document import (
    FORMAT,
    MEND,
    FieldCheck,
    describe,
    dump,
    is_count,
    is_digest,
    is_identity,
    is_number,
    parse_fields,
)
from foreword.bank.names import is_name, is_version, name_version
from foreword.bank.version_files import HEAD, known_files, member_files, missing_files, unknown_files
from foreword.core import REQUEST_ONLY_PARAMS, Combine, Kind, SamplingParams, Task
from foreword.errors import CorruptFile, UsageError

_GENERATION = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - REQUEST_ONLY_PARAMS


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_verbalizer(value: object) -> bool:
    if value is None:
        return True
    words = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(group, list) and all(map(_is_text, group)) for group in words)


def _is_head(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"labels", "per_token"}:
        return False
    labels = value["labels"]
    texts = isinstance(labels, list) and bool(labels) and all(map(_is_text, labels))
    return texts and len(set(labels)) == len(labels) and isinstance(value["per_token"], bool)


def _is_bias(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


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


_RULES: dict[str, FieldCheck] = {
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


_OPTIONAL: dict[str, FieldCheck] = {
    "head": ("an object of labels (different texts) and per_token (true or false)", _is_head),
    "bias": ("an object of label to finite number", _is_bias),
    "combine": (f"one of {', '.join(get_args(Combine))}", lambda v: v in get_args(Combine)),
}
"""Only in versions that need them, so that all others stay as they were."""


def make_record(task: Task, number: int, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of ``task.json`` for a task that becomes version ``number``.

    Args:
        files: size and sha256 of every file of the version.

    Raises:
        UsageError: something in the task contradicts the rest of it, or is no JSON.
    """
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
        **_optional(task),
        "generation": dict(task.generation),
        "provenance": dict(task.provenance),
        "model": task.prefix.model.to_json(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": {name: dict(entry) for name, entry in files.items()},
    }
    if fault := _fault(record):
        raise UsageError(f"task {task.name!r} cannot be stored: {fault}; mend the task and publish it again.")
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
    record = parse_fields(data, _RULES, where, _OPTIONAL)
    _check_files(record["files"], where)
    expected = name_version(int(record["version"].partition("-")[0]), content_digest(record))
    if record["version"] != expected:
        raise CorruptFile(f"{where} was altered: expected version {expected}, found {record['version']}; {MEND}.")
    for field, wanted in (("name", name), ("version", version)):
        if wanted is not None and record[field] != wanted:
            raise CorruptFile(
                f"{where} is in the wrong place: expected {field} {wanted}, found {record[field]}; {MEND}."
            )
    if fault := _fault(record):
        raise CorruptFile(f"{where}: {fault}; {MEND}.")
    return record


def _check_files(files: Mapping[str, Any], where: str) -> None:
    if unknown := unknown_files(files):
        raise CorruptFile(
            f"{where}: expected only the files {known_files()}, found "
            f"{describe(', '.join(unknown))}; it was made by a newer Foreword, so upgrade foreword."
        )
    if missing := missing_files(files):
        raise CorruptFile(f"{where}: expected {missing[0]} among its files, found none; {MEND}.")


def _optional(task: Task) -> dict[str, Any]:
    """The optional fields that a task needs."""
    fields: dict[str, Any] = {}
    if task.head is not None:
        fields["head"] = {"labels": list(task.head.labels), "per_token": task.head.per_token}
    if task.bias is not None:
        fields["bias"] = dict(task.bias)
    if task.members or task.combine != "mean":
        fields["combine"] = task.combine
    return fields


def _fault(record: Mapping[str, Any]) -> str | None:
    """What in a record contradicts the rest of it, as a clause for an error; ``None`` if nothing does."""
    for name, (expected, check) in _OPTIONAL.items():
        if name in record and not check(record[name]):
            return f"{name} must be {expected}, found {describe(record[name])}"
    head, words, files = record.get("head"), record["verbalizer"], record["files"]
    if ("head" in record) != (HEAD in files):
        return f"a head needs both its labels and {HEAD}, found one of them"
    if head is not None and words is not None:
        return "labels come from a head or from a verbalizer, found both"
    if ("combine" in record) != bool(member_files(files)):
        return "combine goes with further prefixes, found one without the other"
    labels = head["labels"] if head is not None else list(words or ())
    if "bias" in record and (not labels or set(record["bias"]) != set(labels)):
        return f"bias must have the labels {describe(labels)}, found {describe(list(record['bias']))}"
    return None


def _check_generation(task: Task) -> None:
    if unknown := sorted(task.generation.keys() - _GENERATION):
        raise UsageError(
            f"task {task.name!r} has generation defaults that do not exist: {', '.join(unknown)}; use some "
            f"of {', '.join(sorted(_GENERATION))}."
        )
