"""What the records of `quality` come to: settings chosen on dev, then ratios and goals on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from foreword.bench.quality.approach import APPROACHES, OURS
from foreword.bench.quality.catalogue import DATASETS
from foreword.bench.record import Record
from foreword.bench.workload import Limit

LAMA = "lama"
Chosen = Mapping[str, Mapping[str, Record]]
"""By data set, then by approach."""


def chosen(records: Sequence[Record]) -> Chosen:
    """The record of every approach whose learning rate is best on dev, in the order of the catalogue."""
    found: dict[str, dict[str, Record]] = {}
    for name, dataset in DATASETS.items():
        for approach in dataset.approaches:
            tried = [r for r in records if (r.settings["dataset"], r.settings["approach"]) == (name, approach)]
            if tried:
                found.setdefault(name, {})[approach] = max(tried, key=lambda record: record.found["dev"])
    return found


def ratios(records: Sequence[Record]) -> dict[str, float]:
    """Every method's score over that of full fine-tuning, and over that of the same method in PEFT."""
    found: dict[str, float] = {}
    for name, by_approach in chosen(records).items():
        for approach, record in by_approach.items():
            if APPROACHES[approach].by == OURS:
                for title, other in (("full", "full"), ("peft", f"peft-{approach}")):
                    if other in by_approach and by_approach[other].found["test"]:
                        score = record.found["test"] / by_approach[other].found["test"]
                        found[f"{name}/{approach}/{title}"] = score
    return found


def limits(records: Sequence[Record]) -> list[Limit]:
    """The goals of those data sets that have been measured."""
    best, over = chosen(records), ratios(records)
    goals: list[Limit] = []
    if "sst2" in best:
        goals.append(Limit("sst2/p-tuning-v2/full", 0.98, over.get("sst2/p-tuning-v2/full")))
        goals.append(
            Limit("sst2/p-tuning-v2/trained_share", 0.01, _share(best["sst2"].get("p-tuning-v2")), at_most=True)
        )
        for method in ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2"):
            goals.append(Limit(f"sst2/{method}/peft", 1.0, over.get(f"sst2/{method}/peft")))
    if relations := lama(best):
        goals.append(Limit("lama/p-tuning/points_over_manual", 15.0, _points(relations, "p-tuning", "manual")))
    return goals


def lama(best: Chosen) -> Chosen:
    """The relations of LAMA among the data sets."""
    return {name: by_approach for name, by_approach in best.items() if name.startswith(f"{LAMA}-")}


def lama_mean(relations: Chosen, approach: str) -> float | None:
    """Mean accuracy over all twelve relations; ``None`` before all are measured."""
    everyone = [name for name in DATASETS if name.startswith(f"{LAMA}-")]
    if not all(approach in relations.get(name, {}) for name in everyone):
        return None
    return mean(relations[name][approach].found["test"] for name in everyone)


def _points(relations: Chosen, ours: str, theirs: str) -> float | None:
    first, second = lama_mean(relations, ours), lama_mean(relations, theirs)
    return None if first is None or second is None else 100 * (first - second)


def _share(record: Record | None) -> float | None:
    return record.found["trained_parameters"] / record.found["model_parameters"] if record is not None else None
