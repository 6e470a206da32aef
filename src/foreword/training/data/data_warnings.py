"""What may be wrong with rows that can be learned from: said before a run, and by ``foreword data``."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from foreword.text.row import Row
from foreword.text.template import Template

# Labels that a program wrote for "there is none".
_NONE_LABELS = frozenset(("nan", "none", "null", "n/a", "na", "<na>"))


def data_warnings(
    learned: Sequence[Row], evaluated: Sequence[Row], template: Template, label: Callable[[Row], str] | None
) -> tuple[str, ...]:
    """Clauses about labels that look alike or like none, contradictions, and rows that are both learned and evaluated.

    Args:
        learned, evaluated: the training rows and, if they were given, the evaluation rows.
        template: its fields tell rows apart.
        label: the label of a row; ``None`` where texts are generated or words are tagged.
    """
    rows, found = [*learned, *evaluated], []
    texts = [_texts(row, template) for row in learned]
    if label is not None:
        found += similar_labels(map(label, rows))
        labels = defaultdict(set)
        for text, row in zip(texts, learned, strict=True):
            labels[text].add(label(row))
        if count := sum(len(each) > 1 for each in labels.values()):
            found.append(f"{count} texts stand in rows with different labels")
    known = set(texts)
    if both := sum(_texts(row, template) in known for row in evaluated):
        found.append(f"{both} of {len(evaluated)} evaluation rows are training rows, too")
    if template.target is not None and (empty := sum(row.values.get(template.target) == "" for row in rows)):
        found.append(f"the answer of {empty} rows is empty")
    return tuple(found)


def similar_labels(labels: Iterable[str]) -> list[str]:
    """Clauses about labels that differ only in case or blanks or in how a number is written, and about labels that look
    like missing values."""
    counted, alike, found = Counter(labels), defaultdict(list), []
    for label in sorted(counted):
        alike[_spelling(label)].append(label)
    for group in alike.values():
        if len(group) > 1:
            named = " and ".join(f"{label!r} ({counted[label]})" for label in group)
            kind = "case or blanks" if isinstance(_spelling(group[0]), str) else "how a number is written"
            found.append(f"labels {named} differ only in {kind}, and are learned as different labels")
    found += [
        f"label {label!r} ({counted[label]} rows) looks like a missing value"
        for label in sorted(counted)
        if label.strip().casefold() in _NONE_LABELS
    ]
    return found


def _spelling(label: str) -> str | float:
    """What labels share that differ only in case or blanks, or that are the same number."""
    bare = "".join(label.casefold().split())
    try:
        number = float(bare)
    except ValueError:
        return bare
    return number if math.isfinite(number) else bare


def _texts(row: Row, template: Template) -> tuple[str, ...]:
    return tuple(str(row.values.get(name)) for name in template.fields)
