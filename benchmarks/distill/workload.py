"""`Distill`: long texts in a few virtual tokens, beside the texts themselves and shorter ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from benchmarks import markdown
from benchmarks.distill.documents import DOCUMENTS, BenchDocument
from benchmarks.report import WorkloadReport
from foreword.bench.participants import OURS, Peer
from foreword.bench.record import Record
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options

SLOTS, KIND = 64, "system"
FULL = Peer("full", "the whole text in context, computed once: what is imitated, so it closes all of the gap")
NONE = Peer("none", "no text at all, which closes nothing of the gap")
FIRST = Peer("first_tokens", f"the first {SLOTS} tokens of the text in place of all of it")
SUMMARY = Peer("summary", f"{SLOTS} tokens that the model writes as a summary of the text, in place of it")


class Distill(WorkloadReport):
    name = "distill"
    about = (
        f"Texts of 900 to 1,500 tokens, each a system prompt, distilled into {SLOTS} virtual tokens with the defaults "
        "of `foreword distill`, on conversations that the model makes about the text by itself. Gap closed: share of "
        "the log-likelihood between no text and the whole text, a token of the whole text's greedy answers to "
        "self-made questions of other seeds, which nothing was learned from; agreement: share of these tokens that are "
        "the most probable ones; F1: words of greedy answers with those of the whole text. Own questions: the same "
        "gap on the data set's test questions, and F1 with their reference answers. Seconds are those of the whole "
        "command, with its measurements."
    )
    peers: ClassVar[Sequence[Peer]] = (FULL, NONE, FIRST, SUMMARY)

    def cases(self, options: Options) -> list[Case]:
        own = {"slots": SLOTS, "kind": KIND, "steps": options.steps, "limit": options.limit}
        return [options.case(document.key, partial(_measure, document), **own) for document in DOCUMENTS]

    def goals(self, engine: str) -> Sequence[Goal]:
        return [
            goal
            for document in DOCUMENTS
            for goal in (
                Goal(f"{document.key}/gap_closed", 0.8),
                Goal(f"{document.key}/seconds", 600.0, at_most=True),
                Goal(f"{document.key}/bytes_ratio", 14.0),
            )
        ]

    def ratios(self, records: Sequence[Record]) -> dict[str, float]:
        ratios = {f"{record.key}/full/bytes": record.metrics["bytes_ratio"] for record in records}
        speeds = {record.key: record.metrics["decode"] for record in records}
        return ratios | {f"{key}/full/decode": speed["distilled"] / speed["full"] for key, speed in speeds.items()}

    def table(self, records: Mapping[str, Record]) -> str:
        columns = ("text", "gap closed", "agreement", "F1", "bytes", "decode, tokens/s", "seconds")
        parts = [
            markdown.table(columns, [row for key, record in records.items() for row in _rows(key, record.metrics)])
        ]
        own = {key: record.metrics["own"] for key, record in records.items() if record.metrics["own"]}
        if own:
            names = ("gap_closed", "f1_distilled", "f1_full")
            shown = [[key, str(each["n"]), *(f"{each[name]:.3f}" for name in names)] for key, each in own.items()]
            parts.append(markdown.table(("own questions", "n", "gap closed", "F1 distilled", "F1 full"), shown))
        return "\n\n".join(parts)


def _measure(document: BenchDocument, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    recipe: dict[str, Any] = {"slots": SLOTS, "seed": options.seed}
    if options.steps is not None:
        recipe["max_steps"] = options.steps
    if options.limit is not None:
        recipe |= {"conversations": options.limit, "held": options.limit}
    questions = document.questions(options.data)[: options.limit]
    given = {**settings, "text": document.read(options.data), "recipe": recipe, "questions": questions}
    with Worker(OURS, "benchmarks.distill.participant:start", given) as worker:
        found = worker.ask("figures")
    log(f"  {found['gap_closed']:.3f} of the gap in {found['seconds']:.0f} s, {found['bytes_ratio']:.1f} x fewer bytes")
    return found


def _rows(key: str, found: Mapping[str, Any]) -> list[list[str]]:
    speed, size, agreement, f1 = found["decode"], found["bytes"], found["agreement"], found["f1"]
    ours = [f"{key}, **{found['slots']} slots**", f"**{found['gap_closed']:.3f}**"]
    ours += [f"{agreement['distilled']:.3f}", f"{f1['distilled']:.3f}"]
    ours += [f"{size['distilled']:,} ({found['bytes_ratio']:.1f} x fewer)"]
    ours += [f"{speed['distilled']:.0f}", f"{found['seconds']:.0f}"]
    full = ["`full`", "1", f"{agreement['full']:.3f}", "1", f"{size['full']:,}", f"{speed['full']:.0f}", ""]
    none = ["`none`", "0", f"{agreement['none']:.3f}", f"{f1['none']:.3f}", "0", "", ""]
    shorter = []
    for name, each in found["peers"].items():
        figures = [f"{each[figure]:.3f}" for figure in ("gap_closed", "agreement", "f1")]
        shorter.append([f"`{name}`", *figures, f"{each['bytes']:,}", "", ""])
    return [ours, full, none, *shorter]
