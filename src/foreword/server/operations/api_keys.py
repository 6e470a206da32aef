"""`ApiKeys`: the API keys of a server, with their tasks, rates and quotas. Only SHA-256 digests are kept."""

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
    """One line of the file of keys.

    Attributes:
        name: for logs and limits; not secret.
        sha256: of the key, in hexadecimal.
        tasks: shell patterns of the names that it gives access to, as ``support-*``; the base model's name is one.
        admin: may publish, change and remove tasks, and read the metrics.
        requests_per_minute, tokens_per_minute: rate limits; tokens of prompts and answers count.
        tokens_per_day: quota, from midnight to midnight UTC.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=64)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tasks: list[str] = ["*"]
    admin: bool = False
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    tokens_per_day: Positive | None = None

    def can_access(self, task: str) -> bool:
        """Whether ``task``, the name of a task or of the base model, fits one of its patterns."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


class ApiKeys:
    """The keys of a server, found by digest. Without any, every request may do everything."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = {key.sha256: key for key in keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self):
        return iter(self._keys.values())

    @classmethod
    def load(cls, file: Path | None = None, secret: str | None = None) -> ApiKeys:
        """The keys of ``file``, and an administrator's with the secret ``secret``.

        Raises UsageError, which names the line.
        """
        keys = read_keys(file) if file is not None else []
        environment = [ApiKey(name="environment", sha256=digest_of(secret), admin=True)] if secret else []
        return cls([*keys, *environment])

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, if there is one."""
        # A digest is compared, so how long it takes tells nothing of the key.
        return self._keys.get(digest_of(secret))


def read_keys(file: Path) -> list[ApiKey]:
    """Keys of a JSON Lines file. Raises UsageError for a file without keys, and for a line that is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as a file of keys ({error}); make one with foreword key.") from error
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            keys.append(_parse_line(line, f"{file}, line {number}"))
            _check_unique(keys[-1], keys[:-1], f"{file}, line {number}")
    if not keys:
        raise UsageError(f"{file} holds no key, which would open the server to all; make one with foreword key.")
    return keys


def new_key() -> str:
    """A secret of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """SHA-256 of a secret, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _parse_line(line: str, where: str) -> ApiKey:
    try:
        return TypeAdapter(ApiKey).validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise UsageError(f"{where}: {place}: {first['msg']}; mend it, or make the key again.") from error


def _check_unique(key: ApiKey, others: Sequence[ApiKey], where: str) -> None:
    for other in others:
        if key.name == other.name or key.sha256 == other.sha256:
            raise UsageError(f"{where}: the key '{key.name}' is there already; give every key a name of its own.")
