"""`DataSummary`: what is in a file of examples, and what would be learned from it; of ``foreword data``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from foreword.errors import UsageError
from foreword.text.encoded_example import ExampleEncoder
from foreword.text.long_rows import LongRows
from foreword.text.row import Row
from foreword.text.rows import read_data, source_name
from foreword.text.template import SoftSlot, Template, is_missing
from foreword.training.data.training_data import TrainingData, evenly_spaced
from foreword.training.recipe import Recipe

if TYPE_CHECKING:
    from foreword.models.tokenized_model import TokenizedModel
    from foreword.training.data.examples import Example, ExampleBuilder

# Rows that are shown as the model will see them.
SHOWN_ROWS = 3
Piece = tuple[str, bool]
"""A part of an example's text, and whether it is an answer."""


@dataclass(frozen=True)
class FieldSummary:
    """One field of the rows.

    Attributes:
        name: of the field.
        types: how many rows have a text, a number, ... in it.
        missing: how many do not have it, or have null, NaN or an empty text.
        first: its first value that is not missing.
    """

    name: str
    types: dict[str, int]
    missing: int
    first: Any


@dataclass(frozen=True)
class TokenCounts:
    """Lengths of the examples in tokens, with their answers and without virtual tokens.

    Attributes:
        model: whose tokenizer counted.
        p50, p95, max: that many tokens have half of the examples, 95 in 100, and all at most.
        context: positions of the model, virtual tokens included; ``None`` without a limit.
        too_long: examples that do not fit.
    """

    model: str
    p50: int
    p95: int
    max: int
    context: int | None
    too_long: int


@dataclass(frozen=True)
class ShownExample:
    """One row as the model will see it: its place, and its text in pieces."""

    where: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class DataSummary:
    """What is in a file, and what would be learned from it.

    Attributes:
        source: the file's name.
        what: the format that was found.
        n: rows.
        fields: of the rows, in the order of their first use.
        label_field: where labels are; ``None`` where texts are generated.
        labels: how often each occurs.
        templates: how rows become text; empty for conversations.
        tokens: lengths; ``None`` without a tokenizer.
        warnings: clauses about what may be wrong.
        examples: rows as the model will see them.
        problem: the sentence by which ``foreword train`` would refuse the data; ``None`` if it would not.
    """

    source: str
    what: str
    n: int
    fields: tuple[FieldSummary, ...]
    label_field: str | None = None
    labels: dict[str, int] | None = None
    templates: tuple[str, ...] = ()
    tokens: TokenCounts | None = None
    warnings: tuple[str, ...] = ()
    examples: tuple[ShownExample, ...] = ()
    problem: UsageError | None = None

    @classmethod
    def read(cls, recipe: Recipe, lm: TokenizedModel | None = None) -> DataSummary:
        """Read the data of a recipe.

        Args:
            lm: counts tokens; ``None`` to leave them out.

        Raises DataError for a file that cannot be read; what is wrong with its rows is `problem`.
        """
        read = read_data(recipe.data, recipe.layout)
        seen = cls(source_name(recipe.data), read.what, len(read.rows), _fields(read.rows), warnings=read.warnings)
        try:
            data = TrainingData.read(recipe, vocabulary=lm.has_lm_head if lm is not None else None)
            return seen._with_data(recipe, data, read.rows, lm)
        except UsageError as error:
            return replace(seen, problem=error)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for ``--json``."""
        values = {name: value for name, value in asdict(self).items() if name != "problem"}
        examples = [
            {"where": each.where, "pieces": [{"text": text, "answer": answer} for text, answer in each.pieces]}
            for each in self.examples
        ]
        problem = str(self.problem) if self.problem is not None else None
        return {**values, "examples": examples, "problem": problem}

    def _with_data(
        self, recipe: Recipe, data: TrainingData, rows: Sequence[Row], lm: TokenizedModel | None
    ) -> DataSummary:
        counted = Counter(data.labels[label_id] for row in data.all_rows for label_id in data.label_ids(row))
        found: dict[str, Any] = {
            "label_field": data.label_field if data.labels else None,
            "labels": {label: counted[label] for label in data.labels} if counted else None,
            "templates": tuple(template.source for template in data.templates),
            "warnings": data.warnings,
        }
        builder = _builder(recipe, data, lm) if lm is not None else None
        if builder is not None:
            examples = [(row, builder.examples(row)) for row in data.all_rows]
            found["tokens"] = _token_counts(builder, [each for _, group in examples for each in group])
            if found["tokens"].too_long:
                fitted = data.fit(LongRows.parse(recipe.long_rows), builder.row_fits)
                found["warnings"] = fitted.warnings
        shown = evenly_spaced(rows, SHOWN_ROWS)
        found["examples"] = tuple(ShownExample(row.where, _pieces(data, row, builder)) for row in shown)
        return replace(self, **found)


def _fields(rows: Sequence[Row]) -> tuple[FieldSummary, ...]:
    names = dict.fromkeys(name for row in rows for name in row.values)
    return tuple(_field(name, [row.values.get(name) for row in rows]) for name in names)


def _field(name: str, values: Sequence[Any]) -> FieldSummary:
    present = [value for value in values if not is_missing(value)]
    types = Counter(map(_type, present))
    return FieldSummary(name, dict(types), len(values) - len(present), present[0] if present else None)


def _type(value: Any) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds.get(type(value), type(value).__name__)


def _builder(recipe: Recipe, data: TrainingData, lm: TokenizedModel) -> ExampleBuilder:
    """A builder of the examples without virtual tokens."""
    from foreword.text.label_scorers import word_scorer
    from foreword.training.data.examples import ExampleBuilder

    encoder = ExampleEncoder(lm.tokenizer, lm.causal, is_encoder_decoder=lm.is_encoder_decoder)
    extra = 0
    if data.verbalizer is not None and data.template is not None:
        before, kinds = data.template.before_answer, (lm.causal, lm.is_encoder_decoder)
        scorer = word_scorer(lm.tokenizer, data.verbalizer, before, causal=kinds[0], is_encoder_decoder=kinds[1])
        extra = scorer.max_extra_tokens
    return ExampleBuilder(lm, data, encoder, 0, extra, recipe.max_length)


def _token_counts(builder: ExampleBuilder, examples: Sequence[Example]) -> TokenCounts:
    sizes = sorted(example.num_tokens + builder.label_tokens for example in examples)
    p50, p95 = (sizes[max(0, math.ceil(share * len(sizes)) - 1)] for share in (0.5, 0.95))
    too_long = sum(not builder.fits(example.num_tokens) for example in examples)
    return TokenCounts(builder.lm.name, p50, p95, sizes[-1], builder.lm.context, too_long)


def _pieces(data: TrainingData, row: Row, builder: ExampleBuilder | None) -> tuple[Piece, ...]:
    """The text of a row, its answers marked."""
    if data.template is not None:
        return _joined(_template_pieces(data, data.template, row))
    if builder is None:
        return _joined(
            (f"{message['role']}: {message['content'] or ''}\n", message["role"] == "assistant")
            for message in data.conversation(row).messages
        )
    return _joined(piece for example in builder.examples(row) for piece in _token_pieces(builder, example))


def _template_pieces(data: TrainingData, template: Template, row: Row) -> list[Piece]:
    if data.per_token:
        tags = zip(row.values[template.single_field()], data.label_ids(row), strict=False)
        return [piece for word, tag in tags for piece in ((f"{word}", False), (f"/{data.labels[tag]} ", True))]
    filled = template.fill(row.values, row.where)
    before, after = (
        [(f"{{soft:{piece.length}}}" if isinstance(piece, SoftSlot) else piece, False) for piece in pieces]
        for pieces in (filled.prompt, filled.after)
    )
    return [*before, (_answer(data, row) or filled.target or "", True), *after]


def _answer(data: TrainingData, row: Row) -> str:
    """The words of a row's labels, or its number; empty where texts are generated."""
    if data.problem_type == "regression":
        return f" {data.number(row):g}"
    labels = [data.labels[label_id] for label_id in data.label_ids(row)]
    if data.verbalizer is not None:
        return data.verbalizer.words[labels[0]][0]
    return f" {', '.join(labels) or '(none)'}" if data.labels else ""


def _token_pieces(builder: ExampleBuilder, example: Example) -> Iterable[Piece]:
    """A conversation's tokens as text: those that are learned are answers."""
    ids = (*example.prompt_ids, example.target[-1])
    learned = {place + 1 for place in example.encoded.output_indices}
    runs: list[tuple[list[int], bool]] = []
    for place, token in enumerate(ids):
        if not runs or runs[-1][1] != (place in learned):
            runs.append(([], place in learned))
        runs[-1][0].append(token)
    decode = builder.encoder.tokenizer.decode
    return [("".join(decode(tokens)), answer) for tokens, answer in runs]


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Neighbouring pieces of one kind made one, and empty ones left out."""
    joined: list[Piece] = []
    for text, answer in pieces:
        if joined and joined[-1][1] == answer:
            joined[-1] = (joined[-1][0] + text, answer)
        elif text:
            joined.append((text, answer))
    return tuple(joined)
