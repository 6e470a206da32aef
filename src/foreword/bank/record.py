"""``task.json``, the manifest of a version: everything but its tensors, and the digests of its other files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field

from foreword.bank.json_document import (
    FORMAT,
    MEND,
    Count,
    FieldCheck,
    Number,
    Sha256,
    describe,
    dump,
    field_error,
    is_a,
    is_identity,
    is_provenance,
    parse_fields,
)
from foreword.bank.names import is_name, is_version, make_version
from foreword.bank.time_to_live import MAX_SECONDS
from foreword.bank.version_files import HEAD, known_files, member_files, missing_files, unknown_files
from foreword.core import REQUEST_ONLY_PARAMS, Combine, Kind, SamplingParams, Task
from foreword.errors import CorruptFile, UsageError

Seconds = Annotated[int, Field(gt=0, le=MAX_SECONDS)]
_GENERATION = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - REQUEST_ONLY_PARAMS


class _FileEntry(BaseModel, extra="forbid"):
    size: Count
    sha256: Sha256


class _HeadEntry(BaseModel, extra="forbid"):
    labels: Annotated[list[str], Field(min_length=1)]
    per_token: bool


class _TypedHeadEntry(_HeadEntry, extra="forbid"):
    problem_type: Literal["multi_label_classification", "regression"]


def _is_head(value: Any) -> bool:
    if not _is_head_entry(value) or len(set(value["labels"])) != len(value["labels"]):
        return False
    if value["per_token"] and "problem_type" in value:
        return False
    return value.get("problem_type") != "regression" or len(value["labels"]) == 1


_is_head_entry = is_a(_HeadEntry | _TypedHeadEntry)


def _is_generation(value: object) -> bool:
    return isinstance(value, dict) and value.keys() <= _GENERATION


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() == timedelta(0)
    except ValueError:
        return False


_FIELDS: dict[str, FieldCheck] = {
    "format": ("the format version", is_a(Count)),
    "name": ("a task name", is_name),
    "version": ("a version such as 0001-0123456789ab", is_version),
    "kind": (f"one of {', '.join(get_args(Kind))}", is_a(Kind)),
    "method": ("a text", is_a(str)),
    "text": ("a text or null", is_a(str | None)),
    "template": ("a text or null", is_a(str | None)),
    "verbalizer": ("an object of label to list of words, or null", is_a(dict[str, list[str]] | None)),
    "generation": (f"an object with some of {', '.join(sorted(_GENERATION))}", _is_generation),
    "provenance": ("an object, with objects as metrics and recipe and a list as parents", is_provenance),
    "model": ("a model identity with at least one layer", is_identity),
    "created": ("a time in UTC such as 2026-01-31T09:30:00Z", _is_time),
    "files": ("an object of file name to size and sha256", is_a(dict[str, _FileEntry])),
}


_OPTIONAL_FIELDS: dict[str, FieldCheck] = {
    "head": (
        "an object of labels (different texts), per_token (true or false) and, of a head over whole texts alone, "
        "problem_type (multi_label_classification, or regression with one label)",
        _is_head,
    ),
    "bias": ("an object of label to finite number", is_a(dict[str, Number])),
    "combine": (f"one of {', '.join(get_args(Combine))}", is_a(Combine)),
    "label_field": ("a text", is_a(str)),
    "ttl": (f"a number of seconds from 1 to {MAX_SECONDS}", is_a(Seconds)),
}
"""Written only where a task needs them, so that the records of other tasks have not changed."""

_OWN_FIELDS = {name: check for name, check in {**_FIELDS, **_OPTIONAL_FIELDS}.items() if name != "version"}
"""Those that do not follow from the others."""


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
        **_optional_fields(task),
        "generation": dict(task.generation),
        "provenance": dict(task.provenance),
        "model": task.prefix.model.to_json(),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": {name: dict(entry) for name, entry in files.items()},
    }
    if error := _contradiction(record):
        raise UsageError(f"task {task.name!r} cannot be stored: {error}; mend the task and publish it again.")
    return {**record, "version": make_version(number, content_digest(record))}


def write_record(record: Mapping[str, Any]) -> bytes:
    return (dump(record, "task.json", indent=2) + "\n").encode()


def content_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 over the record as compact JSON with keys in their order and an empty ``version``.

    It covers the digests of the files, so the twelve digits in a version's name cover the whole version.
    """
    return hashlib.sha256(dump({**record, "version": ""}, "task.json").encode()).hexdigest()


def parse_record(data: bytes, where: str, name: str, version: str | None = None) -> dict[str, Any]:
    """Check the bytes of a ``task.json`` for task ``name``. Raises `CorruptFile`."""
    record = parse_fields(data, _FIELDS, where, _OPTIONAL_FIELDS)
    _check_files(record["files"], where)
    expected = make_version(int(record["version"].partition("-")[0]), content_digest(record))
    if record["version"] != expected:
        raise CorruptFile(f"{where} was altered: expected version {expected}, found {record['version']}; {MEND}.")
    for field, wanted in (("name", name), ("version", version)):
        if wanted is not None and record[field] != wanted:
            raise CorruptFile(
                f"{where} is in the wrong place: expected {field} {wanted}, found {record[field]}; {MEND}."
            )
    if error := _contradiction(record):
        raise CorruptFile(f"{where}: {error}; {MEND}.")
    return record


def _check_files(files: Mapping[str, Any], where: str) -> None:
    if unknown := unknown_files(files):
        raise CorruptFile(
            f"{where}: expected only the files {known_files()}, found "
            f"{describe(', '.join(unknown))}; it was made by a newer Foreword, so upgrade foreword."
        )
    if missing := missing_files(files):
        raise CorruptFile(f"{where}: expected {missing[0]} among its files, found none; {MEND}.")


def _optional_fields(task: Task) -> dict[str, Any]:
    """The optional fields of a task that has a head, a bias, members or a time to live."""
    fields: dict[str, Any] = {}
    if task.head is not None:
        fields["head"] = {"labels": list(task.head.labels), "per_token": task.head.per_token}
        if task.head.problem_type != "single_label_classification":
            fields["head"]["problem_type"] = task.head.problem_type
    if task.bias is not None:
        fields["bias"] = dict(task.bias)
    if task.members or task.combine != "mean":
        fields["combine"] = task.combine
    if task.labels and task.label_field != "label":
        fields["label_field"] = task.label_field
    if task.ttl is not None:
        fields["ttl"] = task.ttl
    return fields


def _contradiction(record: Mapping[str, Any]) -> str | None:
    """A clause for an error about fields that contradict each other; ``None`` if none do."""
    if error := field_error(record, _OWN_FIELDS):
        return error
    head, words, files = record.get("head"), record["verbalizer"], record["files"]
    if ("head" in record) != (HEAD in files):
        return f"a head needs both its labels and {HEAD}, found one of them"
    if head is not None and words is not None:
        return "labels come from a head or from a verbalizer, found both"
    if ("combine" in record) != bool(member_files(files)):
        return "combine goes with further prefixes, found one without the other"
    if head is not None and "problem_type" in head and ("bias" in record or "combine" in record):
        return f"a head for {head['problem_type']} goes without bias and further prefixes, found one of them"
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
