"""The conformance matrix for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.bench.markdown import table
from foreword.bench.record import Record

TITLES = {
    "train": "train",
    "checkpointing": "checkpointing",
    "engine": "embedded engine",
    "peft": "PEFT round trip",
}
_REFUSED = "refused"


def markdown(records: Sequence[Record]) -> str:
    """A row a family: those that carry prefixes by name, then those that are refused."""
    ordered = sorted(records, key=lambda record: (_is_refused(record), record.settings["title"].lower()))
    return table(("model", *TITLES.values()), [_row(record) for record in ordered])


def _is_refused(record: Record) -> bool:
    return all(_REFUSED in record.found[column] for column in TITLES)


def _row(record: Record) -> list[str]:
    found = [record.found[column] for column in TITLES]
    if _is_refused(record) and len({cell[_REFUSED] for cell in found}) == 1:
        return [record.settings["title"], _cell(found[0]), *[_REFUSED] * (len(found) - 1)]
    return [record.settings["title"], *map(_cell, found)]


def _cell(found: Mapping[str, Any]) -> str:
    if _REFUSED in found:
        return f"{_REFUSED}: {_short(found[_REFUSED])}"
    if "missing" in found:
        return "missing"
    return f"{found['difference']:.0e}" if found["difference"] else "0"


def _short(sentence: str) -> str:
    """What is wrong, without who said it (the row does) and without the mend."""
    return re.split(r"[;:]|, so ", sentence)[0].partition(" ")[2].rstrip(".").replace("|", "/")
