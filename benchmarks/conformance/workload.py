"""`Conformance`: tiny models of many families beside plain Transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from benchmarks import markdown
from benchmarks.conformance.columns import LLAMACPP_PEER, PEFT, VLLM_PEER, on_llamacpp, on_vllm, peft_round_trip
from benchmarks.conformance.families import FAMILIES, Family
from benchmarks.conformance.pairs import checkpointing, engine, load_pair
from benchmarks.report import WorkloadReport
from foreword.bench import conformance
from foreword.bench.conformance import Check, Figures
from foreword.bench.participants import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Case, Log, Options

TITLES = {
    "train": "train",
    "checkpointing": "checkpointing",
    "engine": "embedded engine",
    PEFT.key: "PEFT round trip",
    VLLM_PEER.key: "vLLM",
    LLAMACPP_PEER.key: "llama.cpp",
}
_BEFORE = {"missing": "it was measured before there was this column"}


class Conformance(WorkloadReport, conformance.Conformance):
    about = (
        "Tiny models with random weights of many families in float32, each beside the same weights in plain "
        "Transformers with eager attention: the largest difference. train: logits of rows of different lengths in one "
        "ragged batch behind a learned prefix, gradients recorded, beside `past_key_values` a row at a time "
        "(encoder-decoders: soft tokens in front of the encoder, beside `inputs_embeds`). checkpointing: gradients "
        "with and without. embedded engine: requests with different prefixes, learned and static, together in the "
        "engine and each alone in Transformers: scores of words, and by how much the logit of a greedy token is below "
        "the highest (encoders: scores at a place of the text). PEFT round trip: logits of the exported folder in "
        "PEFT. vLLM: log-probabilities of the five most probable tokens of greedy steps, beside the embedded engine's, "
        "behind nothing, a learned prefix of 37 positions, a static one, and a part of it. llama.cpp: the same. "
        "refused: what loading the model, or the step itself, says. failed: how it ended."
    )
    peers: ClassVar[Sequence[Peer]] = (PEFT, VLLM_PEER, LLAMACPP_PEER)
    columns: ClassVar[Mapping[str, Check]] = {
        "train": conformance.train,
        "checkpointing": checkpointing,
        "engine": engine,
        PEFT.key: peft_round_trip,
        VLLM_PEER.key: on_vllm,
        LLAMACPP_PEER.key: on_llamacpp,
    }

    def cases(self, options: Options) -> list[Case]:
        settings = {"peers": list(options.peers), "seed": options.seed}
        return [
            Case(key, {**settings, "title": family.title}, partial(self._measure_family, family))
            for key, family in FAMILIES.items()
        ]

    def _measure_family(
        self, family: Family, options: Options, settings: Mapping[str, Any], log: Log
    ) -> dict[str, Figures]:
        checks = {**self.columns, **{p.key: _missing(p) for p in self.peers if p.key not in options.peers}}
        with TemporaryDirectory() as folder:
            found = self.compare(partial(load_pair, family, Path(folder), options.seed), checks, log)
        return {column: _named(figures, folder, family.key) for column, figures in found.items()}

    def tables(self, records: Sequence[Record]) -> str:
        """A row a family: those that carry prefixes by name, then those that are refused."""
        ordered = sorted(records, key=lambda record: (_is_refused(record), record.settings["title"].lower()))
        return markdown.table(("model", *TITLES.values()), [_row(record) for record in ordered])


def _missing(peer: Peer) -> Check:
    return lambda pair: {"missing": f"{TITLES[peer.key].split()[0]} was not there, or not wanted"}


def _named(figures: Figures, folder: str, key: str) -> dict[str, Any]:
    """The same with the model's name in place of where it was saved."""
    return {name: text.replace(folder, key) if isinstance(text, str) else text for name, text in figures.items()}


def _is_refused(record: Record) -> bool:
    return all("refused" in figures for figures in record.metrics.values())


def _row(record: Record) -> list[str]:
    found = [record.metrics.get(column, _BEFORE) for column in TITLES]
    shown = [_shown(figures) for figures in found]
    if _is_refused(record) and len({figures["refused"] for figures in record.metrics.values()}) == 1:
        shown[1:] = ["refused" if "refused" in figures else _shown(figures) for figures in found[1:]]
    return [record.settings["title"], *shown]


def _shown(figures: Figures) -> str:
    if "refused" in figures:
        # What is wrong, without who said it (the row does) and without the mend.
        return f"refused: {_first(re.split(r'[;:]|, so ', figures['refused'])[0].partition(' ')[2])}"
    if "failed" in figures:
        return f"failed: {_first(figures['failed'])}"
    if "missing" in figures:
        return markdown.MISSING
    return f"{figures['difference']:.0e}" if figures["difference"] else "0"


def _first(text: str) -> str:
    """The first sentence."""
    return text.partition(". ")[0].rstrip(".").replace("|", "/")
