"""`DataSet`: rows, and how a row becomes text, whoever learns from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import spread_out, write_jsonl
from foreword.text.rows import read_rows

Values = dict[str, Any]
Split = Mapping[str, list[Values]]
"""Rows for ``train``, ``dev`` and ``test``."""

PARTS = ("train", "dev", "test")
# Enough to choose checkpoints and learning rates by; every run scores them six times.
DEV_ROWS = 400


@dataclass(frozen=True)
class DataSet:
    """One data set as it is learned and as it is asked.

    Attributes:
        name: as in the key of a cell.
        read: makes the rows from the folder of all data sets.
        metric: the figure that approaches are compared by.
        template: for whoever is asked in words; ends in ``{mask}`` or ``{target:...}``.
        approaches: who is measured on it, by name.
        verbalizer: words of the labels; by default the names of all labels that occur.
        label_field: of the label or the tags.
        head_template: the text before a linear head, where one is learned in place of the words.
        patterns: further templates, for PET.
        soft_template: the template with its ``{soft:N}``, for P-tuning; soft tokens in front without.
        steps: of learning, 16 rows each.
        encoder: on the sentence encoder, not on the base model.
    """

    name: str
    read: Callable[[Path], Split]
    metric: str
    template: str
    approaches: Sequence[str]
    verbalizer: Mapping[str, str] | None = None
    label_field: str = "label"
    head_template: str | None = None
    patterns: Sequence[str] = ()
    soft_template: str | None = None
    steps: int = 300
    encoder: bool = False

    def write(self, data: Path, folder: Path, limit: int | None = None) -> Files:
        """Files of the three parts, `DEV_ROWS` of dev at most.

        Args:
            limit: rows of each part at most; test rows of labels that nobody could have learned are left out then.
        """
        rows = self.read(data)
        rows = {**rows, "dev": spread_out(rows["dev"], DEV_ROWS)}
        few = {part: found[:limit] for part, found in rows.items()}
        if limit is not None:
            few["test"] = [row for row in rows["test"] if self._seen(few).issuperset(self._labels(row))][:limit]
        paths = {part: write_jsonl(folder / f"{part}.jsonl", few[part]) for part in PARTS}
        return Files(**paths, verbalizer=self._words(rows) if "{mask}" in self.template else None)

    def _seen(self, rows: Split) -> set[str]:
        return {label for part in ("train", "dev") for row in rows[part] for label in self._labels(row)}

    def _labels(self, row: Values) -> set[str]:
        label = row.get(self.label_field)
        return set(label) if isinstance(label, list) else set() if label is None else {label}

    def _words(self, rows: Split) -> Mapping[str, str]:
        if self.verbalizer is not None:
            return self.verbalizer
        found = {label for part in PARTS for row in rows[part] for label in self._labels(row)}
        return {label: f" {label}" for label in sorted(found)}


@dataclass(frozen=True)
class Files:
    """A data set on disk.

    Attributes:
        train, dev, test: paths of JSONL files.
        verbalizer: words of the labels, if it has any.
    """

    train: str
    dev: str
    test: str
    verbalizer: Mapping[str, str] | None


def parts(folder: str, prefix: str = "") -> Callable[[Path], Split]:
    """A reader of ``<folder>/<prefix><part>.jsonl``."""
    return lambda data: {part: values(data / folder / f"{prefix}{part}.jsonl") for part in PARTS}


def values(file: Path) -> list[Values]:
    """The rows of a file."""
    return [dict(row.values) for row in read_rows(file)]
