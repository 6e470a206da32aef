"""`ApiKeys`: who may ask, for which tasks, and how much. Keys are kept as SHA-256, never as they are."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from foreword.errors import UsageError

PREFIX = "fw-"
Positive = Annotated[int, Field(gt=0)]


class ApiKey(BaseModel):
    """One line of a file of keys.

    Attributes:
        name: for logs and limits; not secret.
        sha256: of the key, in hexadecimal.
        tasks: patterns of the names that it reaches, such as ``support-*``; the base model's name is one of them.
        admin: may publish, change and remove tasks, and read the metrics.
        requests_per_minute, tokens_per_minute: how fast it may ask; prompts and answers count.
        tokens_per_day: its quota, from midnight to midnight UTC.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=64)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tasks: list[str] = ["*"]
    admin: bool = False
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    tokens_per_day: Positive | None = None

    def reaches(self, task: str) -> bool:
        """Whether it may ask a task, or the base model, of that name."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


class ApiKeys:
    """All keys of a server. Without any, everybody may do everything."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = {key.sha256: key for key in keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self):
        return iter(self._keys.values())

    @classmethod
    def of(cls, file: Path | None = None, secret: str | None = None) -> ApiKeys:
        """The keys of a file, and one that may do everything.

        Raises UsageError, which names the line.
        """
        keys = read_keys(file) if file is not None else []
        everything = [ApiKey(name="environment", sha256=digest_of(secret), admin=True)] if secret else []
        return cls([*keys, *everything])

    def find(self, secret: str) -> ApiKey | None:
        """The key that somebody shows."""
        # A digest is compared, so how long it takes tells nothing of the key.
        return self._keys.get(digest_of(secret))


def read_keys(file: Path) -> list[ApiKey]:
    """One JSON object a line. Raises UsageError for a file without keys, and for a line that is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as a file of keys ({error}); make one with foreword key.") from error
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            keys.append(_parsed(line, f"{file}, line {number}"))
            _check_new(keys[-1], keys[:-1], f"{file}, line {number}")
    if not keys:
        raise UsageError(f"{file} holds no key, which would open the server to all; make one with foreword key.")
    return keys


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _parsed(line: str, where: str) -> ApiKey:
    try:
        return TypeAdapter(ApiKey).validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise UsageError(f"{where}: {place}: {first['msg']}; mend it, or make the key again.") from error


def _check_new(key: ApiKey, others: Sequence[ApiKey], where: str) -> None:
    for other in others:
        if key.name == other.name or key.sha256 == other.sha256:
            raise UsageError(f"{where}: the key '{key.name}' is there already; give every key a name of its own.")
