"""Real text for the engines' workloads: a policy to stand in front, and what people ask, cut to tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.errors import BenchError
from foreword.text.rows import read_rows


def policy(data: Path, name: str) -> str:
    """A document of ``policies``. Raises BenchError if it is not there."""
    for row in read_rows(data / "policies" / "documents.jsonl"):
        if row.values["id"] == name:
            return str(row.values["text"])
    raise BenchError(f"there is no policy {name!r} in {data / 'policies' / 'documents.jsonl'}; fetch the data again.")


def requests(data: Path) -> str:
    """Everything that the users of ``policies`` ask for, one after another."""
    rows = read_rows(data / "policies" / "user_requests.jsonl")
    return "\n".join(str(row.values["reason_for_call"]) for row in rows)


def cut(tokenizer: Any, text: str, tokens: int) -> str:
    """The beginning of a text, so many tokens. Raises BenchError if it is shorter."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < tokens:
        raise BenchError(f"a text of {len(ids)} tokens is shorter than the {tokens} that are measured; choose another.")
    return tokenizer.decode(ids[:tokens])


def windows(tokenizer: Any, text: str, count: int, tokens: int) -> list[list[int]]:
    """Token ids ``[count][tokens]`` from all over a text; they overlap where it is too short to do without."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    last = len(ids) - tokens
    if last < count - 1:
        raise BenchError(f"a text of {len(ids)} tokens has no {count} different pieces of {tokens}; give a longer one.")
    starts = [place * last // max(1, count - 1) for place in range(count)]
    return [ids[start : start + tokens] for start in starts]
