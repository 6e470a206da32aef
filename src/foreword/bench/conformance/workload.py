"""`Conformance`: which families do what, as differences to plain Transformers; the matrix of the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench.conformance import table
from foreword.bench.engines import LLAMACPP_PACKAGES, VLLM_PACKAGES
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

GOAL = 1e-4

PEFT = Peer("peft", "loads what Foreword exports, around the stock model, in this very process", needs=("peft",))
VLLM = Peer(
    "vllm",
    "vLLM with our connector, in float32, eager, with blocks of 32 positions; a process for every family",
    either=VLLM_PACKAGES,
    environment={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_WAIT_POLICY": "passive",
    },
)

LLAMACPP = Peer(
    "llamacpp",
    "llama.cpp on a GGUF file of the same weights, all in float32, its cache too; a process for every family",
    needs=LLAMACPP_PACKAGES,
    environment={"OMP_WAIT_POLICY": "passive"},
)

_PEERS = {PEFT.key: "PEFT", VLLM.key: "vLLM", LLAMACPP.key: "llama.cpp"}


@dataclass(frozen=True)
class Conformance:
    """See ``about``."""

    name: ClassVar[str] = "conformance"
    about: ClassVar[str] = (
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
    peers: ClassVar[Sequence[Peer]] = (PEFT, VLLM, LLAMACPP)
    engines: ClassVar[Sequence[str]] = ("embedded",)
    reads_data: ClassVar[bool] = False

    def cells(self, options: Options) -> list[Cell]:
        from foreword.bench.conformance.families import FAMILIES

        settings = {"peers": list(options.peers), "seed": options.seed}
        return [
            Cell(key, {**settings, "title": family.title}, partial(_measure, key, options))
            for key, family in FAMILIES.items()
        ]

    def summary(self, records: Sequence[Record]) -> Summary:
        limits = [
            Limit(f"{column}/largest_difference", GOAL, _largest(column, records), at_most=True)
            for column in table.TITLES
        ]
        return Summary({}, limits)

    def tables(self, records: Sequence[Record]) -> str:
        return table.markdown(records)


def _largest(column: str, records: Sequence[Record]) -> float | None:
    """The largest difference; ``None`` if there is none, or if one could not be told."""
    cells = [table.cell(record, column) for record in records]
    if any("failed" in cell for cell in cells):
        return None
    return max((cell["difference"] for cell in cells if "difference" in cell), default=None)


def _measure(key: str, options: Options, say: Say) -> dict[str, Any]:
    from foreword.bench.conformance.checks import CHECKS
    from foreword.bench.conformance.families import FAMILIES
    from foreword.bench.conformance.subject import Subject
    from foreword.errors import UnsupportedModel, UsageError

    with TemporaryDirectory() as folder:
        try:
            subject = Subject.of(FAMILIES[key], Path(folder), options.seed)
        except UnsupportedModel as error:
            say(f"  refused: {error}")
            return dict.fromkeys(table.TITLES, _named({"refused": str(error)}, folder, key))
        found: dict[str, Any] = {}
        for column in table.TITLES:
            if column in _PEERS and column not in options.peers:
                found[column] = {"missing": f"{_PEERS[column]} was not there, or not wanted"}
                continue
            try:
                found[column] = CHECKS[column](subject)
            except (UnsupportedModel, UsageError) as error:
                found[column] = {"refused": str(error)}
            found[column] = _named(found[column], folder, key)
            say(f"  {column}: {found[column]}")
    return found


def _named(found: Mapping[str, Any], folder: str, key: str) -> dict[str, Any]:
    """What was said, with the model's name in place of where it was saved."""
    return {name: said.replace(folder, key) if isinstance(said, str) else said for name, said in found.items()}
