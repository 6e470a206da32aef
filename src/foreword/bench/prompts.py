"""Text for prompts from the data set ``policies``: a document to stand in front, and what its users ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.errors import BenchError
from foreword.text.rows import read_rows

FIXTURES = "foreword.bench.fixtures:start"
"""Makes prompts and tasks in a process that ends before measuring starts."""


def learned_name(index: int) -> str:
    """Name of a learned task that the fixtures publish."""
    return f"t{index:04d}"


def policy(data: Path, name: str) -> str:
    """A document. Raises BenchError if it is not there."""
    file = data / "policies" / "documents.jsonl"
    for row in read_rows(file):
        if row.values["id"] == name:
            return str(row.values["text"])
    raise BenchError(f"there is no policy {name!r} in {file}; fetch the data again.")


def user_requests(data: Path) -> str:
    """All requests of users, joined by newlines."""
    rows = read_rows(data / "policies" / "user_requests.jsonl")
    return "\n".join(str(row.values["reason_for_call"]) for row in rows)


def windows(tokenizer: Any, text: str, count: int, tokens: int) -> list[list[int]]:
    """Token ids ``[count][tokens]`` at even distances in a text; they overlap where it is short."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < tokens + count - 1:
        raise BenchError(f"a text has {len(ids)} tokens, {tokens + count - 1} are needed; give a longer one.")
    starts = [place * (len(ids) - tokens) // max(1, count - 1) for place in range(count)]
    return [ids[start : start + tokens] for start in starts]
