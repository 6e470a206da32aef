"""Tasks of a bank as people read them: a row of ``bank list``, the page of ``bank show``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.bank.bank import Bank
from foreword.bank.positions import positions_of
from foreword.bank.time_to_live import format_duration
from foreword.core.identity import ModelIdentity, describe_layers
from foreword.core.overview import metrics_line

COLUMNS = {
    "name": "NAME",
    "version": "VERSION",
    "versions": "VERSIONS",
    "kind": "KIND",
    "method": "METHOD",
    "positions": "POSITIONS",
    "bytes": "SIZE",
    "labels": "LABELS",
    "metric": "METRIC",
    "model": "MODEL",
    "created": "CREATED",
}
"""Keys of a row, and the headings of their columns."""

# Characters of a list of labels in a table, at most.
LABELS_WIDTH = 24
# Keys of a record that the page words in its own way, or that are for machines.
_WORDED = ("format", "name", "version", "kind", "method", "text", "template", "verbalizer", "head", "provenance")
_WORDED += ("model", "created", "files", "versions", "generation", "ttl")


def row(bank: Bank, record: dict[str, Any]) -> dict[str, Any]:
    """What a list says of a task: values as JSON has them."""
    metrics = record["provenance"].get("metrics") or {}
    return {
        "name": record["name"],
        "version": record["version"],
        "versions": len(bank.versions(record["name"])),
        "kind": record["kind"],
        "method": record["method"],
        "positions": positions_of(bank, record),
        "bytes": _size(record),
        "labels": _labels(record),
        "metric": dict([each for each in metrics.items() if isinstance(each[1], int | float)][:1]),
        "model": _model(record),
        "created": record["created"],
        "expired": bank.has_expired(record["name"]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows below the headings of their columns."""
    cells = [list(COLUMNS.values()), *([_cell(key, each.get(key)) for key in COLUMNS] for each in rows)]
    for line, each in zip(cells[1:], rows, strict=True):
        line[0] += " (expired)" if each.get("expired") else ""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def page(bank: Bank, found: Mapping[str, Any]) -> str:
    """Everything recorded about a version that people ask for, its text last.

    Args:
        found: the record, with the task's ``versions``, and what else is known of it.
    """
    record, served = dict(found), bank.current(found["name"])
    shown = row(bank, record)
    size = _cell("bytes", shown["bytes"])
    positions = size if shown["positions"] is None else f"{shown['positions']} ({size})"
    model = ModelIdentity.from_json(record["model"])
    lines = [("kind", _kind(record)), ("positions", positions)]
    if model.keeps_states:
        lines.append(("keeps", describe_layers(model.layers)))
    if record["template"] is not None:
        lines.append(("template", repr(record["template"])[1:-1]))
    lines.append(("labels", ", ".join(_label_words(record))))
    made = record["provenance"]
    lines.append(("metrics", metrics_line(*(made.get(name) or {} for name in ("metrics", "metrics_before")))))
    lines += [(key.replace("_", " "), _text(value)) for key, value in record["generation"].items()]
    if record.get("ttl") is not None:
        lines.append(("ttl", f"{format_duration(record['ttl'])} without being used"))
    lines += [(key.replace("_", " "), _text(value)) for key, value in record.items() if key not in _WORDED]
    settings = made.get("recipe") or {}
    given = {key: value for key, value in settings.items() if value not in (None, False) and key not in _WORDED}
    lines.append(("learned with", ", ".join(f"{key} {_text(value)}" for key, value in given.items())))
    lines.append(("made from", ", ".join(map(str, made.get("parents") or ()))))
    lines.append(("made on", made.get("quantization")))
    lines += [("model", _model(record)), ("created", record["created"])]
    versions = [f"{version} (served)" if version == served else version for version in record["versions"]]
    lines.append(("versions", ", ".join(versions)))
    width = max(len(name) for name, _ in lines)
    text = f"\n\n{record['text']}" if record["text"] else ""
    body = "\n".join(f"  {name.ljust(width)}  {value}" for name, value in lines if value)
    return f"{record['name']}@{record['version']}\n{body}{text}"


def _kind(record: Mapping[str, Any]) -> str:
    kind, method = record["kind"], record["method"]
    if kind == "learned":
        return f"learned ({method})"
    return f"{'a system turn' if kind == 'system' else 'text in front'} ({method})"


def _size(record: Mapping[str, Any]) -> int:
    return sum(entry["size"] for name, entry in record["files"].items() if name != "README.md")


def _labels(record: Mapping[str, Any]) -> list[str]:
    head = record.get("head")
    return list(head["labels"] if head is not None else record["verbalizer"] or ())


def _label_words(record: Mapping[str, Any]) -> list[str]:
    words = record["verbalizer"] or {}
    return [f"{label} {'|'.join(map(repr, words[label]))}" if label in words else label for label in _labels(record)]


def _model(record: Mapping[str, Any]) -> str:
    return f"{record['model']['architecture']} {record['model']['weights'][:8]}"


def _cell(key: str, value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if key == "bytes":
        return _bytes(value)
    if key == "labels":
        text = ", ".join(value)
        return text if len(text) <= LABELS_WIDTH else f"{len(value)}: {text[: LABELS_WIDTH - 6]}..."
    if key == "metric":
        return ", ".join(f"{name} {figure:.3f}" for name, figure in value.items())
    if key == "created":
        return value[:16].replace("T", " ")
    return str(value)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
