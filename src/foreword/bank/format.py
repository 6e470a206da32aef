"""One version of a task as one folder: ``task.json``, ``README.md``, ``prefix.safetensors`` and what else it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from foreword.bank.adapter_file import read_adapter, write_adapter
from foreword.bank.card import write_card
from foreword.bank.digests import check_file, file_sha256
from foreword.bank.durable import sync_folder, write_file
from foreword.bank.head_file import read_head, write_head
from foreword.bank.json_document import MEND
from foreword.bank.prefix_file import outline_prefix, read_header, read_prefix, write_prefix
from foreword.bank.record import make_record, parse_record, write_record
from foreword.bank.soft_file import read_soft, write_soft
from foreword.bank.tensor_file import Load, load_tensors
from foreword.bank.version_files import (
    ADAPTER,
    ADAPTER_FILES,
    CARD,
    HEAD,
    PREFIX,
    RECORD,
    SOFT,
    member_file,
    member_files,
    name_source,
)
from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.errors import BankError, CorruptFile, UsageError

__all__ = [
    "check_version",
    "outline_version",
    "read_header",
    "read_prefix",
    "read_record",
    "read_version",
    "write_prefix",
    "write_version",
]


_CONV1D = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer")
"""Families of Transformers whose linear layers are ``Conv1D``; it only spares PEFT a warning."""


def write_version(folder: Path, task: Task, *, number: int = 1) -> Task:
    """Write a version into an existing empty folder, fsynced.

    Args:
        folder: its name need not be the version, which is known only when all is written.
        task: what to write; its ``version`` is ignored.
        number: counts the versions of the task, from 1.

    Returns:
        the task with the ``version`` that names this content.

    Raises:
        UsageError: something that JSON or the format cannot hold, or parts that do not fit each other.
        OSError: the disk is full or not writable.
    """
    names = [*_write_prefixes(folder, task), *_write_parts(folder, task)]
    write_file(folder / CARD, write_card(task).encode())
    record = make_record(task, number, {name: _entry(folder / name) for name in (CARD, *names)})
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


def read_version(folder: Path, name: str, version: str | None = None, load: Load = load_tensors) -> Task:
    """Read the version in ``folder`` as task ``name``.

    Only what is served is checked, so that an edited ``README.md`` takes no task down; `check_version`
    checks all.

    Args:
        load: reads tensors.

    Raises:
        CorruptFile: anything missing, altered, malformed or from a newer Foreword.
    """
    record = read_record(folder, name, version)
    # Files are hashed while their tensors are read: of a long prefix, either takes as long as the other.
    with ThreadPoolExecutor(1) as hashing:
        checked = hashing.submit(_check_served, folder, record["files"])
        try:
            return _read_task(folder, record, partial(read_prefix, load=load), load)
        finally:
            checked.result()  # that a file was altered says more than what follows from it


def outline_version(folder: Path, name: str, version: str | None = None, load: Load = load_tensors) -> Task:
    """The same task without the values of its prefixes, see `outline_prefix`. Raises as `read_version` does, but for no
    fault of those values."""
    record = read_record(folder, name, version)
    prefixes = {PREFIX, *member_files(record["files"])}
    _check_served(folder, {file: entry for file, entry in record["files"].items() if file not in prefixes})
    return _read_task(folder, record, outline_prefix, load)


def _check_served(folder: Path, files: Mapping[str, Any]) -> None:
    for file, entry in files.items():
        if file != CARD:
            check_file(folder / file, **entry)


ReadPrefix = Callable[[Path, str], KVPrefix]


def _read_task(folder: Path, record: Mapping[str, Any], read: ReadPrefix, load: Load) -> Task:
    words, bias = record["verbalizer"], record.get("bias")
    return Task(
        name=record["name"],
        method=record["method"],
        prefix=_read_member(folder, PREFIX, record, read),
        kind=record["kind"],
        text=record["text"],
        template=record["template"],
        verbalizer=None if words is None else {label: tuple(group) for label, group in words.items()},
        generation=record["generation"],
        provenance=record["provenance"],
        bias=None if bias is None else {label: float(value) for label, value in bias.items()},
        members=tuple(_read_member(folder, file, record, read) for file in member_files(record["files"])),
        combine=record.get("combine", "mean"),
        version=record["version"],
        **_read_parts(folder, record, record["model"]["hidden_size"], load),
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


def _write_prefixes(folder: Path, task: Task) -> list[str]:
    """Write the prefix and the further members, and name their files."""
    names = [PREFIX, *(member_file(number) for number in range(2, len(task.members) + 2))]
    for name, prefix in zip(names, (task.prefix, *task.members), strict=True):
        if prefix.model != task.prefix.model:
            raise UsageError(
                f"task {task.name!r} cannot be stored: {name} would hold a prefix of another model; combine prefixes "
                "of one model."
            )
        write_prefix(folder / name, prefix, method=task.method, provenance=task.provenance)
    return names


def _write_parts(folder: Path, task: Task) -> list[str]:
    """Write what a task has besides prefixes, and name the files."""
    model, names = task.prefix.model, []
    if task.soft is not None:
        write_soft(folder / SOFT, task.soft, model.hidden_size, task.template)
        names.append(SOFT)
    if task.head is not None:
        write_head(folder / HEAD, task.head, model.hidden_size)
        names.append(HEAD)
    if task.adapter is not None:
        causal = model.architecture.endswith(("ForCausalLM", "LMHeadModel"))
        write_adapter(
            folder / ADAPTER,
            task.adapter,
            task_type="CAUSAL_LM" if causal else None,
            fan_in_fan_out=model.architecture.startswith(_CONV1D),
        )
        names.extend(ADAPTER_FILES)
    return names


def _read_parts(folder: Path, record: Mapping[str, Any], hidden: int, load: Load) -> dict[str, Any]:
    """Fields of the task that have files of their own besides prefixes."""
    files, parts = record["files"], {}
    if SOFT in files:
        parts["soft"] = read_soft(folder / SOFT, hidden, record["template"], load)
    if HEAD in files:
        head = record["head"]
        parts["head"] = read_head(folder / HEAD, head["labels"], hidden, per_token=head["per_token"], load=load)
    if ADAPTER_FILES[0] in files:
        parts["adapter"] = read_adapter(folder / ADAPTER, load)
    return parts


def _read_member(folder: Path, file: str, record: Mapping[str, Any], read: ReadPrefix) -> KVPrefix:
    prefix = read(folder / file, name_source(record["name"], record["version"], file))
    if prefix.model != ModelIdentity.from_json(record["model"]):
        raise CorruptFile(f"{folder / file}: task.json and the prefix name different models; {MEND}.")
    return prefix


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path, fresh=True)}


def _unlisted(folder: Path, files: dict[str, Any]) -> list[Path]:
    """Files and folders that do not belong to the version; of a strange folder only itself."""
    listed = {folder / name for name in (RECORD, *files)}
    above = {parent for path in listed for parent in path.parents}
    return sorted(path for path in folder.rglob("*") if path.parent in above and path not in listed | above)
