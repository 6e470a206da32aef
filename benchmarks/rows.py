"""Rows of SST-2 for the workloads that learn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.text.rows import read_rows

TEMPLATE = "Review: {text}\nSentiment:{mask}"
VERBALIZER = {"positive": " great", "negative": " bad"}


def rows(data: Path, part: str = "train") -> list[Mapping[str, Any]]:
    return [row.values for row in read_rows(data / "sst2" / f"{part}.jsonl")]


def spread_out(rows: Sequence[Any], most: int) -> list[Any]:
    """``most`` rows at even distances, or all of them."""
    return list(rows) if len(rows) <= most else [rows[place * len(rows) // most] for place in range(most)]


def write_jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows, and return the path."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)
