"""Names of the files of a version, and which of them require each other."""

from __future__ import annotations

import re
from collections.abc import Collection

from foreword.bank import adapter_file
from foreword.bank.names import is_name, is_version, split_ref

RECORD = "task.json"
MODEL_CARD = "README.md"
PREFIX = "prefix.safetensors"
SOFT = "soft.safetensors"
HEAD = "head.safetensors"
ADAPTER = "adapter"
ADAPTER_FILES = (f"{ADAPTER}/{adapter_file.CONFIG}", f"{ADAPTER}/{adapter_file.WEIGHTS}")

_MEMBER = re.compile(r"member-([2-9]|[1-9][0-9]{1,3})\.safetensors")
_KNOWN = (MODEL_CARD, PREFIX, SOFT, HEAD, *ADAPTER_FILES)


def member_file(number: int) -> str:
    """The file of the ``number``-th prefix of an ensemble, from 2; the first is `PREFIX`."""
    return f"member-{number}.safetensors"


def member_files(files: Collection[str]) -> list[str]:
    """Those of ``files`` that hold the second and later prefixes of an ensemble, in order."""
    numbers = sorted(int(found[1]) for found in map(_MEMBER.fullmatch, files) if found)
    return [member_file(number) for number in numbers]


def prefix_source(name: str, version: str, file: str) -> str:
    """The `KVPrefix.source` of a file in a bank: ``task@version/prefix.safetensors``."""
    return f"{name}@{version}/{file}"


def parse_source(source: str) -> tuple[str, str, str] | None:
    """Task, version and file of a source; ``None`` if it is malformed, so that it is never used as a path."""
    ref, _, file = source.partition("/")
    name, version = split_ref(ref)
    if not (is_name(name) and is_version(version) and (file == PREFIX or _MEMBER.fullmatch(file))):
        return None
    return name, str(version), file


def unknown_files(files: Collection[str]) -> list[str]:
    """Those of ``files`` with no name of this format. They are never used as paths."""
    return sorted(name for name in files if name not in _KNOWN and not _MEMBER.fullmatch(name))


def missing_files(files: Collection[str]) -> list[str]:
    """Files that every version needs, or that others of ``files`` need, and that are not among them."""
    needed = {PREFIX, *(member_file(number) for number in range(2, len(member_files(files)) + 2))}
    if any(name in files for name in ADAPTER_FILES):
        needed.update(ADAPTER_FILES)
    return sorted(needed - set(files))


def known_files() -> str:
    """The valid file names, for an error."""
    return ", ".join((*_KNOWN, member_file(2), "and so on"))
