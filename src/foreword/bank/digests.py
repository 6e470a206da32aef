"""SHA-256 of files, computed once a file and process: an unchanged file keeps its digest."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from foreword.bank.json_document import MEND
from foreword.errors import CorruptFile

_SETTLED_NS = 2_000_000_000
"""A file changed less than two seconds ago may change again without its time stamp moving: not remembered."""


class FileIdentity(NamedTuple):
    """What tells that a file is still the one that was read."""

    path: str
    size: int
    mtime_ns: int
    inode: int


_known: dict[FileIdentity, str] = {}


def identify(path: Path) -> FileIdentity:
    status = os.stat(path)
    return FileIdentity(os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino)


def file_sha256(path: Path, *, fresh: bool = False) -> str:
    """SHA-256 of a file's bytes; ``fresh`` reads them even if the file looks unchanged."""
    identity = identify(path)
    if not fresh and identity in _known:
        return _known[identity]
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time_ns() - identity.mtime_ns > _SETTLED_NS and identify(path) == identity:
        _known[identity] = digest
    return digest


def check_file(path: Path, size: int, sha256: str, *, fresh: bool = False) -> None:
    """Raise `CorruptFile` unless the file is there with ``size`` bytes and that digest."""
    if not path.is_file():
        raise CorruptFile(f"{path}: expected a file of {size} bytes, found none; {MEND}.")
    check_size(path.stat().st_size, size, str(path))
    check_sha256(file_sha256(path, fresh=fresh), sha256, str(path))


def check_bytes(data: bytes, size: int, sha256: str, where: str) -> None:
    """The same for bytes that are not in a local file yet."""
    check_size(len(data), size, where)
    check_sha256(hashlib.sha256(data).hexdigest(), sha256, where)


def check_size(found: int, expected: int, where: str) -> None:
    if found != expected:
        what = "truncated" if found < expected else "too long"
        raise CorruptFile(f"{where} is {what}: expected {expected} bytes, found {found}; {MEND}.")


def check_sha256(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise CorruptFile(f"{where} was altered: expected SHA-256 {expected[:12]}, found {found[:12]}; {MEND}.")
