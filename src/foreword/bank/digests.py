"""SHA-256 of files, with a cache: a file that has not changed is hashed once in a process."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from foreword.bank.json_document import MEND
from foreword.errors import CorruptFile

_MIN_AGE_NS = 2_000_000_000
"""Younger files are not cached: they may change again within the resolution of their time stamp."""


class FileIdentity(NamedTuple):
    """The key of the cache: a file with all of these equal is taken for unchanged."""

    path: str
    size: int
    mtime_ns: int
    inode: int


_digests: dict[FileIdentity, str] = {}


def file_identity(path: Path) -> FileIdentity:
    status = os.stat(path)
    return FileIdentity(os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino)


def file_sha256(path: Path, *, fresh: bool = False) -> str:
    """SHA-256 of a file's bytes in hexadecimal; ``fresh`` goes past the cache."""
    identity = file_identity(path)
    if not fresh and identity in _digests:
        return _digests[identity]
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time_ns() - identity.mtime_ns > _MIN_AGE_NS and file_identity(path) == identity:
        _digests[identity] = digest
    return digest


def check_file(path: Path, size: int, sha256: str, *, fresh: bool = False) -> None:
    """Raise `CorruptFile` unless the file is there with ``size`` bytes and that digest."""
    if not path.is_file():
        raise CorruptFile(f"{path}: expected a file of {size} bytes, found none; {MEND}.")
    check_size(path.stat().st_size, size, str(path))
    check_sha256(file_sha256(path, fresh=fresh), sha256, str(path))


def check_bytes(data: bytes, size: int, sha256: str, where: str) -> None:
    """`check_file` for bytes that are not in a local file yet; ``where`` names them in errors."""
    check_size(len(data), size, where)
    check_sha256(hashlib.sha256(data).hexdigest(), sha256, where)


def check_size(found: int, expected: int, where: str) -> None:
    if found != expected:
        what = "truncated" if found < expected else "too long"
        raise CorruptFile(f"{where} is {what}: expected {expected} bytes, found {found}; {MEND}.")


def check_sha256(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise CorruptFile(f"{where} was altered: expected SHA-256 {expected[:12]}, found {found[:12]}; {MEND}.")
