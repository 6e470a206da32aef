"""``foreword data``."""

from __future__ import annotations

import json as jsons
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import FlagsOf, expand_options
from foreword.cli.options import Json, ModelName, RemoteCode, emit, quiet_libraries, say
from foreword.cli.recipes import make_recipe
from foreword.errors import ModelError
from foreword.training.recipe import Recipe
from foreword.training.setting import DATA, settings_of

if TYPE_CHECKING:
    from foreword.models.tokenized_model import TokenizedModel
    from foreword.training.data.data_summary import DataSummary, FieldSummary, TokenCounts

# Settings of a recipe that do not say how its data are read.
OTHERS = tuple(
    name
    for name, (_, setting) in settings_of(Recipe).items()
    if name in ("data", "unlabeled") or (setting.group != DATA and name not in ("head", "problem_type"))
)
# Labels that are listed, and characters of a value that are shown, at most.
MAX_LABELS, MAX_VALUE = 20, 60


@expand_options
def data(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Examples, as --data of train takes them.")],
    *,
    settings: Annotated[dict[str, Any], FlagsOf(Recipe, without=OTHERS)],
    model: ModelName = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Show what is in a file of examples, and what would be learned from it.

    Only the model's tokenizer is read, to count tokens. Fails where train would refuse the data.

    Example: foreword data reviews.jsonl
    """
    recipe = make_recipe({**settings, "data": file, "template": settings["template"] or None})
    from foreword.training.data.data_summary import DataSummary

    tokenized, problem = _tokenized(model, trust_remote_code)
    summary = DataSummary.read(recipe, tokenized)
    if problem is not None:
        say(f"tokens are not counted: {problem}")
    emit(summary.to_json(), _text(summary), json)
    if summary.problem is not None:
        raise summary.problem


def _tokenized(name: str | None, trust_remote_code: bool) -> tuple[TokenizedModel | None, ModelError | None]:
    """The model's tokenizer, or why there is none where no model is named and the default one is not there yet."""
    quiet_libraries()
    from foreword.models.tokenized_model import TokenizedModel

    try:
        return TokenizedModel.load(name, trust_remote_code=trust_remote_code, progress=say), None
    except ModelError as error:
        if name is not None:
            raise
        return None, error


def _text(summary: DataSummary) -> str:
    from foreword.evaluation.table import table

    lines = [f"{summary.source}: {summary.n} rows, {summary.what}", ""]
    lines += [table([["field", "holds", "missing", "first"], *map(_field_row, summary.fields)]), ""]
    if summary.labels is not None:
        shown = sorted(summary.labels.items(), key=lambda pair: -pair[1])
        listed = ", ".join(f"{label} {count}" for label, count in shown[:MAX_LABELS])
        more = f", {len(shown) - MAX_LABELS} more" if len(shown) > MAX_LABELS else ""
        lines.append(f"{len(shown)} labels in {summary.label_field!r}: {listed}{more}")
    lines += [f"template: {jsons.dumps(each, ensure_ascii=False)}" for each in summary.templates]
    if summary.tokens is not None:
        lines.append(_tokens_line(summary.tokens))
    lines += [f"warning: {warning}" for warning in summary.warnings]
    for number, example in enumerate(summary.examples, 1):
        lines += ["", f"example {number}, {example.where}, its answer in « »:"]
        text = "".join(f"«{text}»" if answer else text for text, answer in example.pieces)
        lines += [f"  {line}" for line in text.splitlines()]
    return "\n".join(lines)


def _field_row(field: FieldSummary) -> list[str]:
    holds = ", ".join(f"{count} {kind}" for kind, count in field.types.items()) or "nothing"
    value = jsons.dumps(field.first, ensure_ascii=False, default=str)
    shown = value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 3] + "..."
    return [field.name, holds, str(field.missing) if field.missing else "", shown]


def _tokens_line(tokens: TokenCounts) -> str:
    long = f"; {tokens.too_long} are too long, see --long-rows" if tokens.too_long else ""
    return (
        f"tokens with the answer: half have up to {tokens.p50}, 95 in 100 up to {tokens.p95}, the longest "
        f"{tokens.max}; {tokens.model} takes {tokens.context or 'any number'}, virtual tokens included{long}"
    )
