"""The `quality` workload for people: a table a data set, and one for the relations of LAMA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foreword.bench.quality.approach import APPROACHES
from foreword.bench.quality.score import Chosen, chosen, lama, lama_mean
from foreword.bench.record import Record

_COLUMNS = ("method", "by", "score", "trained", "of the model", "bytes a task", "seconds", "learning rate")


def markdown(records: Sequence[Record]) -> str:
    best = chosen(records)
    relations = lama(best)
    tables = [_table(name, found) for name, found in best.items() if name not in relations]
    return "\n\n".join([*tables, *([_relations(relations)] if relations else [])])


def _table(name: str, found: Mapping[str, Record]) -> str:
    first = next(iter(found.values()))
    title = f"**{name}**, {first.settings['metric'].replace('_', ' ')} on {first.found['n']} test rows"
    rows = [_row(approach, record) for approach, record in found.items()]
    return "\n".join([title, "", *_head(_COLUMNS, words=2), *rows])


def _row(approach: str, record: Record) -> str:
    found, settings = record.found, record.settings
    trained, whole = found["trained_parameters"], found["model_parameters"]
    score = found["test"]
    cells = [
        approach,
        APPROACHES[approach].by,
        f"{score:.3f}" if score <= 1 else f"{score:.1f}",
        f"{trained:,}",
        f"{trained / whole:.2%}" if whole else "-",
        f"{found['task_bytes']:,}",
        f"{found['seconds']:.0f}",
        f"{settings['rate']:g}" if settings["rate"] is not None else "default" if trained else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _relations(relations: Chosen) -> str:
    approaches = list(dict.fromkeys(approach for found in relations.values() for approach in found))
    rows = [
        f"| {name} | " + " | ".join(_score(found.get(approach)) for approach in approaches) + " |"
        for name, found in relations.items()
    ]
    means = [lama_mean(relations, approach) for approach in approaches]
    last = "| **mean** | " + " | ".join(f"**{each:.3f}**" if each is not None else "-" for each in means) + " |"
    return "\n".join(["**LAMA**, accuracy", "", *_head(("relation", *approaches), words=1), *rows, last])


def _score(record: Record | None) -> str:
    return f"{record.found['test']:.3f}" if record is not None else "-"


def _head(columns: Sequence[str], words: int) -> list[str]:
    """Head of a table whose first columns are words, and the others numbers."""
    return [f"| {' | '.join(columns)} |", f"|{'---|' * words}{'--:|' * (len(columns) - words)}"]
