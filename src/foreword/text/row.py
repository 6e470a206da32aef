"""`Row`: one example of a data file or a data set, with its place for errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foreword.errors import UsageError


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        values: its fields, as JSON has them: text, numbers, booleans, null, lists and objects.
        where: file and line, such as ``train.jsonl line 3``, or ``train.parquet row 3``.
    """

    values: dict[str, Any]
    where: str

    @contextmanager
    def error_context(self) -> Iterator[None]:
        """Prefix the UsageErrors raised in this block with the row's file and line."""
        try:
            yield
        except UsageError as error:
            if str(error).startswith(self.where):
                raise
            raise type(error)(f"{self.where}: {error}") from error


def values_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over rows as canonical JSON, for rows that have no file of their own."""
    digest = hashlib.sha256()
    for values in rows:
        line = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=bytes.hex)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
