"""The folder of one version of a task: ``task.json``, ``README.md``, ``prefix.safetensors`` and optional parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from foreword.bank.adapter_file import read_adapter, write_adapter
from foreword.bank.digests import check_file, file_sha256
from foreword.bank.durable import durable_write, fsync_folder
from foreword.bank.head_file import read_head, write_head
from foreword.bank.json_document import MEND
from foreword.bank.model_card import model_card
from foreword.bank.prefix_file import read_prefix, read_prefix_metadata, write_prefix
from foreword.bank.record import make_record, parse_record, write_record
from foreword.bank.soft_file import read_soft, write_soft
from foreword.bank.tensor_file import TensorLoader, load_tensors
from foreword.bank.version_files import (
    ADAPTER,
    ADAPTER_FILES,
    HEAD,
    MODEL_CARD,
    PREFIX,
    RECORD,
    SOFT,
    member_file,
    member_files,
    prefix_source,
)
from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.errors import BankError, CorruptFile, UsageError

_CONV1D = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer")
"""Architectures of Transformers whose linear layers are ``Conv1D``; PEFT warns if a config does not say so."""


def write_version(folder: Path, task: Task, *, number: int = 1) -> Task:
    """Write a version into an existing empty folder, fsynced.

    Args:
        folder: its name need not be the version, which follows from the files.
        task: its ``version`` is ignored.
        number: of the version, from 1.

    Returns:
        the task with its new ``version``.

    Raises:
        UsageError: values that JSON or the format cannot hold, or parts that do not fit each other.
        OSError: the disk is full or not writable.
    """
    names = [*_write_prefixes(folder, task), *_write_parts(folder, task)]
    durable_write(folder / MODEL_CARD, model_card(task).encode())
    record = make_record(task, number, {name: _file_entry(folder / name) for name in (MODEL_CARD, *names)})
    durable_write(folder / RECORD, write_record(record))
    fsync_folder(folder)
    return dataclasses.replace(task, version=record["version"])


def read_record(folder: Path, name: str, version: str | None = None) -> dict[str, Any]:
    """The checked content of ``task.json``. Raises `CorruptFile`."""
    path = folder / RECORD
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFile(f"{path}: expected the description of a version, found none; {MEND}.") from error
    return parse_record(data, str(path), name, version)


def read_version(folder: Path, name: str, version: str | None = None, load: TensorLoader = load_tensors) -> Task:
    """Read the version in ``folder`` as task ``name``.

    All files but ``README.md``, which people may edit, are checked; `check_version` checks that one, too.

    Args:
        load: reads tensors.

    Raises:
        CorruptFile: a file is missing, altered, malformed or from a newer Foreword.
    """
    record = read_record(folder, name, version)
    # Files are hashed while their tensors are read: of a long prefix, either takes as long as the other.
    with ThreadPoolExecutor(1) as hashing:
        checked = hashing.submit(_check_files, folder, record["files"])
        try:
            return _read_task(folder, record, partial(read_prefix, load=load), load)
        finally:
            checked.result()  # an altered file is the better error: it is the cause of others


def read_version_metadata(
    folder: Path, name: str, version: str | None = None, load: TensorLoader = load_tensors
) -> Task:
    """The task of `read_version` with the values of its prefixes on the meta device, see `read_prefix_metadata`. Raises
    as `read_version` does, unless the error is in those values."""
    record = read_record(folder, name, version)
    prefixes = {PREFIX, *member_files(record["files"])}
    _check_files(folder, {file: entry for file, entry in record["files"].items() if file not in prefixes})
    return _read_task(folder, record, read_prefix_metadata, load)


def _check_files(folder: Path, files: Mapping[str, Any], *, fresh: bool = False) -> None:
    for file, entry in files.items():
        if file != MODEL_CARD:
            check_file(folder / file, **entry, fresh=fresh)


PrefixReader = Callable[[Path, str], KVPrefix]


def _read_task(folder: Path, record: Mapping[str, Any], read: PrefixReader, load: TensorLoader) -> Task:
    words, bias = record["verbalizer"], record.get("bias")
    return Task(
        name=record["name"],
        method=record["method"],
        prefix=_read_prefix(folder, PREFIX, record, read),
        kind=record["kind"],
        text=record["text"],
        template=record["template"],
        verbalizer=None if words is None else {label: tuple(group) for label, group in words.items()},
        generation=record["generation"],
        provenance=record["provenance"],
        bias=None if bias is None else {label: float(value) for label, value in bias.items()},
        members=tuple(_read_prefix(folder, file, record, read) for file in member_files(record["files"])),
        combine=record.get("combine", "mean"),
        label_field=record.get("label_field", "label"),
        ttl=record.get("ttl"),
        version=record["version"],
        **_read_parts(folder, record, record["model"], load),
    )


def prove_version(folder: Path, name: str, version: str, load: TensorLoader = load_tensors) -> None:
    """Read every byte of a version anew from the disk but those of ``README.md``. Raises as `read_version` does."""
    _check_files(folder, read_record(folder, name, version)["files"], fresh=True)
    read_version(folder, name, version, load)


def check_version(folder: Path, name: str, version: str | None = None) -> list[str]:
    """Sentences about all errors of a version, which is read anew from the disk; empty if there is none."""
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
    """Write the prefix and the other members of an ensemble. Returns the names of their files."""
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
    """Write soft tokens, head and adapter, as far as the task has them. Returns the names of their files."""
    model, names = task.prefix.model, []
    if task.soft is not None:
        write_soft(folder / SOFT, task.soft, model.hidden_size, task.template)
        names.append(SOFT)
    if task.head is not None:
        write_head(folder / HEAD, task.head, model.head_size)
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


def _read_parts(
    folder: Path, record: Mapping[str, Any], model: Mapping[str, Any], load: TensorLoader
) -> dict[str, Any]:
    """The soft tokens, head and adapter that a record lists, as fields of the task."""
    files, parts = record["files"], {}
    if SOFT in files:
        parts["soft"] = read_soft(folder / SOFT, model["hidden_size"], record["template"], load)
    if HEAD in files:
        width = model.get("output_size") or model["hidden_size"]
        parts["head"] = read_head(folder / HEAD, record["head"], width, load=load)
    if ADAPTER_FILES[0] in files:
        parts["adapter"] = read_adapter(folder / ADAPTER, load)
    return parts


def _read_prefix(folder: Path, file: str, record: Mapping[str, Any], read: PrefixReader) -> KVPrefix:
    prefix = read(folder / file, prefix_source(record["name"], record["version"], file))
    if prefix.model != ModelIdentity.from_json(record["model"]):
        raise CorruptFile(f"{folder / file}: task.json and the prefix name different models; {MEND}.")
    return prefix


def _file_entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path, fresh=True)}


def _unlisted(folder: Path, files: dict[str, Any]) -> list[Path]:
    """Files and folders that ``task.json`` does not list; of an unlisted folder only itself, not its files."""
    listed = {folder / name for name in (RECORD, *files)}
    above = {parent for path in listed for parent in path.parents}
    return sorted(path for path in folder.rglob("*") if path.parent in above and path not in listed | above)
