"""The conformance matrix for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.bench.markdown import MISSING, table
from foreword.bench.record import Record

TITLES = {
    "train": "train",
    "checkpointing": "checkpointing",
    "engine": "embedded engine",
    "peft": "PEFT round trip",
    "vllm": "vLLM",
    "llamacpp": "llama.cpp",
}
_REFUSED, _FAILED = "refused", "failed"


def markdown(records: Sequence[Record]) -> str:
    """A row a family: those that carry prefixes by name, then those that are refused."""
    ordered = sorted(records, key=lambda record: (_is_refused(record), record.settings["title"].lower()))
    return table(("model", *TITLES.values()), [_row(record) for record in ordered])


def cell(record: Record, column: str) -> Mapping[str, Any]:
    """What was found; a record from before there was a column has nothing in it."""
    return record.found.get(column, {"missing": "it was measured before there was this column"})


def _is_refused(record: Record) -> bool:
    return all(_REFUSED in found for found in record.found.values())


def _row(record: Record) -> list[str]:
    found = [cell(record, column) for column in TITLES]
    if _is_refused(record) and len({each[_REFUSED] for each in record.found.values()}) == 1:
        shown = [_REFUSED if _REFUSED in each else _shown(each) for each in found[1:]]
        return [record.settings["title"], _shown(found[0]), *shown]
    return [record.settings["title"], *map(_shown, found)]


def _shown(found: Mapping[str, Any]) -> str:
    if _REFUSED in found:
        return f"{_REFUSED}: {_short(found[_REFUSED])}"
    if _FAILED in found:
        return f"{_FAILED}: {_first(found[_FAILED])}"
    if MISSING in found:
        return MISSING
    return f"{found['difference']:.0e}" if found["difference"] else "0"


def _short(sentence: str) -> str:
    """What is wrong, without who said it (the row does) and without the mend."""
    return _first(re.split(r"[;:]|, so ", sentence)[0].partition(" ")[2])


def _first(text: str) -> str:
    """The first sentence."""
    return text.partition(". ")[0].rstrip(".").replace("|", "/")
