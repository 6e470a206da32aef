"""How the files of a version are called, and which of them belong together."""

from __future__ import annotations

import re
from collections.abc import Collection

from foreword.bank import adapter_file
from foreword.bank.names import is_name, is_version, split_ref

RECORD = "task.json"
CARD = "README.md"
PREFIX = "prefix.safetensors"
SOFT = "soft.safetensors"
HEAD = "head.safetensors"
ADAPTER = "adapter"
ADAPTER_FILES = (f"{ADAPTER}/{adapter_file.CONFIG}", f"{ADAPTER}/{adapter_file.WEIGHTS}")

_MEMBER = re.compile(r"member-([2-9]|[1-9][0-9]{1,3})\.safetensors")
_KNOWN = (CARD, PREFIX, SOFT, HEAD, *ADAPTER_FILES)


def member_file(number: int) -> str:
    """The file of the ``number``-th prefix of an ensemble, from 2; the first is `PREFIX`."""
    return f"member-{number}.safetensors"


def member_files(files: Collection[str]) -> list[str]:
    """Those of ``files`` that hold further prefixes, in their order."""
    numbers = sorted(int(found[1]) for found in map(_MEMBER.fullmatch, files) if found)
    return [member_file(number) for number in numbers]


def name_source(name: str, version: str, file: str) -> str:
    """What a prefix remembers as the place that it came from: ``task@version/prefix.safetensors``."""
    return f"{name}@{version}/{file}"


def split_source(source: str) -> tuple[str, str, str] | None:
    """Task, version and file of a source; ``None`` for anything else, which is never used as a path."""
    ref, _, file = source.partition("/")
    name, version = split_ref(ref)
    if not (is_name(name) and is_version(version) and (file == PREFIX or _MEMBER.fullmatch(file))):
        return None
    return name, str(version), file


def unknown_files(files: Collection[str]) -> list[str]:
    """Those that this Foreword cannot read. No other name is ever used as a path."""
    return sorted(name for name in files if name not in _KNOWN and not _MEMBER.fullmatch(name))


def missing_files(files: Collection[str]) -> list[str]:
    """Those that must be there because of others, or always."""
    needed = {PREFIX, *(member_file(number) for number in range(2, len(member_files(files)) + 2))}
    if any(name in files for name in ADAPTER_FILES):
        needed.update(ADAPTER_FILES)
    return sorted(needed - set(files))


def known_files() -> str:
    """All names that may be listed, for an error."""
    return ", ".join((*_KNOWN, member_file(2), "and so on"))
