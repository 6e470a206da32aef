"""`Distill`: long texts in a few virtual tokens, beside the texts themselves and shorter ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.distill.catalogue import TEXTS, Text
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary

SIDE = "foreword.bench.distill.side:start"
SLOTS = 64
KIND = "system"
GAP_GOAL = 0.8
SECONDS_GOAL = 600.0
BYTES_GOAL = 14.0

FULL = Peer("full", "the whole text in context, computed once: what is imitated, so it closes all of the gap")
NONE = Peer("none", "no text at all, which closes nothing of the gap")
FIRST = Peer("first_tokens", f"the first {SLOTS} tokens of the text in place of all of it")
SUMMARY = Peer("summary", f"{SLOTS} tokens that the model writes as a summary of the text, in place of it")


@dataclass(frozen=True)
class Distill:
    """See ``about``."""

    name: ClassVar[str] = "distill"
    about: ClassVar[str] = (
        f"Texts of 900 to 1,500 tokens, each a system prompt, distilled into {SLOTS} virtual tokens with the defaults "
        "of `foreword distill`, on conversations that the model makes about the text by itself. Gap closed: share of "
        "the log-likelihood between no text and the whole text, a token of the whole text's greedy answers to "
        "self-made questions of other seeds, which nothing was learned from; agreement: share of these tokens that are "
        "the most probable ones; F1: words of greedy answers with those of the whole text. Own questions: the same "
        "gap on the data set's test questions, and F1 with their reference answers. Seconds are those of the whole "
        "command, with its measurements."
    )
    peers: ClassVar[Sequence[Peer]] = (FULL, NONE, FIRST, SUMMARY)
    engines: ClassVar[Sequence[str]] = ()
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [Cell(text.key, _settings(options), partial(_measure, text, options)) for text in TEXTS]

    def summary(self, records: Sequence[Record]) -> Summary:
        found = {record.key: record.found for record in records}
        ratios = {f"{key}/full/bytes": each["bytes_ratio"] for key, each in found.items()}
        ratios |= {
            f"{key}/full/decode": each["decode"]["distilled"] / each["decode"]["full"] for key, each in found.items()
        }
        limits = []
        for text in TEXTS:
            each = found.get(text.key, {})
            limits.append(Limit(f"{text.key}/gap_closed", GAP_GOAL, each.get("gap_closed")))
            limits.append(Limit(f"{text.key}/seconds", SECONDS_GOAL, each.get("seconds"), at_most=True))
            limits.append(Limit(f"{text.key}/bytes_ratio", BYTES_GOAL, each.get("bytes_ratio")))
        return Summary(ratios, limits)

    def tables(self, records: Sequence[Record]) -> str:
        columns = ("text", "gap closed", "agreement", "F1", "bytes", "decode, tokens/s", "seconds")
        rows = [row for record in records for row in _rows(record.key, record.found)]
        own = [_own_row(record.key, record.found) for record in records if record.found["own"]]
        parts = [markdown.table(columns, rows)]
        if own:
            parts.append(markdown.table(("own questions", "n", "gap closed", "F1 distilled", "F1 full"), own))
        return "\n\n".join(parts)


def _settings(options: Options) -> dict[str, Any]:
    return {
        "peers": list(options.peers),
        "model": options.model,
        "slots": SLOTS,
        "kind": KIND,
        "steps": options.steps,
        "limit": options.limit,
        "seed": options.seed,
    }


def _measure(text: Text, options: Options, say: Say) -> dict[str, Any]:
    recipe: dict[str, Any] = {"slots": SLOTS, "seed": options.seed}
    if options.steps is not None:
        recipe["max_steps"] = options.steps
    if options.limit is not None:
        recipe |= {"conversations": options.limit, "held": options.limit}
    given = {
        "model": options.model,
        "text": text.read(options.data),
        "kind": KIND,
        "recipe": recipe,
        "peers": list(options.peers),
        "questions": text.questions(options.data)[: options.limit],
    }
    with Candidate("foreword", SIDE, given) as side:
        found = side.ask("figures")
    say(f"  {found['gap_closed']:.3f} of the gap in {found['seconds']:.0f} s, {found['bytes_ratio']:.1f} x fewer bytes")
    return found


def _rows(key: str, found: Mapping[str, Any]) -> list[list[str]]:
    speed, size = found["decode"], found["bytes"]
    ours = [
        f"{key}, **{found['slots']} slots**",
        f"**{found['gap_closed']:.3f}**",
        f"{found['agreement']['distilled']:.3f}",
        f"{found['f1']['distilled']:.3f}",
        f"{size['distilled']:,} ({found['bytes_ratio']:.1f} x fewer)",
        f"{speed['distilled']:.0f}",
        f"{found['seconds']:.0f}",
    ]
    full = ["`full`", "1", f"{found['agreement']['full']:.3f}", "1", f"{size['full']:,}", f"{speed['full']:.0f}", ""]
    none = ["`none`", "0", f"{found['agreement']['none']:.3f}", f"{found['f1']['none']:.3f}", "0", "", ""]
    short = [
        [
            f"`{name}`",
            f"{each['gap_closed']:.3f}",
            f"{each['agreement']:.3f}",
            f"{each['f1']:.3f}",
            f"{each['bytes']:,}",
            "",
            "",
        ]
        for name, each in found["peers"].items()
    ]
    return [ours, full, none, *short]


def _own_row(key: str, found: Mapping[str, Any]) -> list[str]:
    own = found["own"]
    figures = (own["gap_closed"], own["f1_distilled"], own["f1_full"])
    return [key, str(own["n"]), *(f"{each:.3f}" for each in figures)]
