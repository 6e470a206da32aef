"""``docs/models.md``: which architectures of Transformers carry a prefix, made from the records of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.bench.record import Record

TITLES = {
    "causal": "Causal language models",
    "masked": "Masked language models (encoders)",
    "seq2seq": "Encoder-decoders",
}
CHECKS = {
    "joined": "rows of several lengths behind several fronts, in one batch, have the logits of the joined text",
    "train": "two steps of P-tuning v2 (encoder-decoders: prompt tuning, too), where a finite gradient arrives in "
    "every layer, and it agrees with finite differences of the loss",
    "engine": "the engine's greedy tokens of mixed requests are those of plain Transformers; an encoder's label scores",
    "peft": "PEFT, given the same keys and values, has the same logits",
}
BOUNDS = (1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class ModelsRow:
    """One architecture and what was found of it (`foreword.bench.prefix_checks.examine`)."""

    kind: str
    model_type: str
    class_name: str
    found: Mapping[str, Any]

    @classmethod
    def of(cls, record: Record) -> ModelsRow:
        kind, _, model_type = record.key.partition("/")
        return cls(kind, model_type, record.settings["class"], record.metrics)

    @property
    def carries(self) -> bool:
        return "carried" in self.found

    @property
    def reason(self) -> str:
        """Why it is not carried, or was not built."""
        return str(next(self.found[key] for key in ("not_built", "refused", "failed") if key in self.found))

    @property
    def name(self) -> str:
        return f"`{self.model_type}` ({self.class_name})"


def models_page(records: Sequence[Record]) -> str:
    """The page, the same for the same findings."""
    version = records[0].settings["transformers"] if records else "?"
    rows = sorted((ModelsRow.of(record) for record in records), key=lambda row: (row.kind, row.model_type))
    kinds = [kind for kind in TITLES if any(row.kind == kind for row in rows)]
    parts = [
        "# Models",
        f"Every architecture of Transformers {version}, tried as a tiny random model in float32 that has a layer of "
        "each kind the architecture has. `foreword bench conformance --all` writes this page; run it again after an "
        "upgrade of Transformers, or to see what another version gives. Whether your own checkpoint carries prefixes "
        "is proved whenever it is loaded, and said by `foreword doctor --model NAME`.",
        table(
            ["", "architectures", "built", "carry a prefix", "share of those built"], [_share(rows, k) for k in kinds]
        ),
        "What is checked:\n\n" + "\n".join(f"- **{name}**: {text}." for name, text in CHECKS.items()),
        "A check is `ok`, or says what Foreword or PEFT refuses there, or what went wrong, numbered below the table. "
        "The last column bounds the largest difference of all checks to Transformers, in units of the largest logit.",
    ]
    for kind in kinds:
        parts += _section(TITLES[kind], [row for row in rows if row.kind == kind])
    return "\n\n".join(parts) + "\n"


def _share(rows: Sequence[ModelsRow], kind: str) -> list[str]:
    own = [row for row in rows if row.kind == kind]
    built = [row for row in own if "not_built" not in row.found]
    carried = sum(row.carries for row in built)
    share = f"{carried / len(built):.1%}" if built else "-"
    return [TITLES[kind], str(len(own)), str(len(built)), str(carried), share]


def _section(title: str, rows: Sequence[ModelsRow]) -> list[str]:
    notes: dict[str, int] = {}
    carried = [_carried(row, notes) for row in rows if row.carries]
    refused = [[row.name, row.reason] for row in rows if not row.carries and "not_built" not in row.found]
    missing = [[row.name, row.reason] for row in rows if "not_built" in row.found]
    parts = [f"## {title}", table(["architecture", "carried", *CHECKS, "differs by less than"], carried)]
    if notes:
        parts.append("\n".join(f"{number}. {note}" for note, number in notes.items()))
    if refused:
        parts += ["### Refused", table(["architecture", "why"], refused)]
    if missing:
        parts += ["### Not built", table(["architecture", "why"], missing)]
    return parts


def _carried(row: ModelsRow, notes: dict[str, int]) -> list[str]:
    checks = row.found["checks"]
    said = [_said(row, checks.get(name, {}), notes) for name in CHECKS]
    differences = [checks[name]["difference"] for name in CHECKS if name != "train" and _ok(checks.get(name, {}))]
    bound = next((bound for bound in BOUNDS if max(differences, default=0.0) < bound), None)
    return [row.name, row.found["carried"], *said, f"{bound:g}" if differences and bound is not None else "-"]


def _said(row: ModelsRow, found: Mapping[str, Any], notes: dict[str, int]) -> str:
    if _ok(found):
        return "ok"
    if not found:
        return "-"
    kind = "refused" if "refused" in found else "failed"
    note = str(found[kind]).replace(row.class_name, "the model")
    return f"{'no' if kind == 'refused' else '**fails**'} ({notes.setdefault(note, len(notes) + 1)})"


def _ok(found: Mapping[str, Any]) -> bool:
    return found.get("difference") is not None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, in one line a row."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
