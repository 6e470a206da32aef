"""``foreword bank compose``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.completion import complete_task
from foreword.cli.flags import expand_options
from foreword.cli.interruption import on_interrupted_publish
from foreword.cli.options import Json, ModelOptions, Replace, emit
from foreword.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foreword.core import Task
    from foreword.evaluation.report import Report
    from foreword.models import LanguageModel
    from foreword.prompts.compose import Composition, Placement
    from foreword.text.rows import Row

# The name of a stack that is only measured.
UNPUBLISHED = "stack"

HOW: dict[Placement, str] = {
    "text": "its text, run behind what stands in front: exact",
    "first": "as it was learned: exact",
    "soft": "its soft tokens, run behind what stands in front; learned without it, so an approximation",
    "rotated": "its keys, turned to their new positions; learned without what stands in front, so an approximation",
    "template": "its template alone",
}


@expand_options
def compose(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Tasks or task@version, two or more, the first in front.", metavar="TASK", autocompletion=complete_task
        ),
    ],
    publish: Annotated[str | None, typer.Option(help="Publish the stack under this name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Examples to measure the stack and its parts on: JSONL, CSV or Parquet.")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Field of --data that holds the label.", show_default="the task's")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N examples of --data.", min=1)] = None,
    template: Annotated[
        str | None, typer.Option(help="Template of the stack.", show_default="of the last task that has one")
    ] = None,
    verbalizer: Annotated[str | None, typer.Option(help="Words of every label for --template: JSON or a file.")] = None,
    *,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Stack tasks into one: the first prefix in front, every other one behind it.

    A static task's text is computed anew where it stands, which is exact. A learned prefix behind another is an
    approximation: --data measures it, and every part alone.

    Example: foreword bank compose polite reviews --publish polite-reviews
    """
    if publish is None and data is None:
        raise UsageError("there is nothing to do with the stack; pass --publish NAME, --data FILE or both.")
    if data is None and (limit is not None or label_field is not None):
        raise UsageError("--limit and --label-field are of --data; pass it, or leave them out.")
    store = options.open_bank()
    from foreword.prompts.stackable import check_stackable
    from foreword.text.rows import read_rows
    from foreword.text.template import Template, decode_escapes
    from foreword.text.verbalizer import Verbalizer

    words = dict(Verbalizer.parse(verbalizer).words) if verbalizer is not None else None
    source = Template.parse(decode_escapes(template)).source if template is not None else None
    if publish is not None:
        options.check_name(publish)
    rows = read_rows(data)[:limit] if data is not None else None
    parts = [store.load(ref) for ref in tasks]
    check_stackable(parts)
    with on_interrupted_publish(store, publish) if publish is not None else nullcontext():
        lm = options.open_model()
        from foreword.prompts.compose import compose as stacked

        composition = stacked(lm, publish or UNPUBLISHED, parts, template=source, verbalizer=words)
        results = _evaluate_stack(lm, composition, rows, label_field) if rows is not None else {}
        task = with_fields(composition.task, provenance={**composition.task.provenance, **results})
        if publish is not None:
            task = store.publish(task, replace=replace, reserved=[lm.name])
    _emit(composition, task, results, published=publish is not None, json=json)


def _evaluate_stack(
    lm: LanguageModel, composition: Composition, rows: Sequence[Row], label_field: str | None
) -> dict[str, Any]:
    """Metrics of the stack, and of every part alone with the stack's template."""
    from foreword.engine.engine import Engine
    from foreword.evaluation.evaluate import evaluate
    from foreword.progress import Progress

    if composition.task.template is None:
        raise UsageError("the stack has no template to ask the examples with; pass --template.")
    parts: dict[str, Task] = {task.ref: task for task in composition.separate_tasks()}
    with Engine(lm) as engine, Progress("measuring", len(parts) + 1, "prefixes") as progress:
        alone = {}
        for ref, task in parts.items():
            alone[ref] = _metrics(evaluate(engine, task, rows, label_field=label_field))
            progress.set_completed(len(alone))
        together = _metrics(evaluate(engine, composition.task, rows, label_field=label_field))
    return {"n": len(rows), "metrics": together, "alone": alone}


def _metrics(report: Report) -> dict[str, float]:
    return {**report.metrics, **({"loss": report.loss} if report.loss is not None else {})}


def _emit(composition: Composition, task: Task, results: Mapping[str, Any], *, published: bool, json: bool) -> None:
    length = task.prefix.length
    parts = [
        {"task": part.task.ref, "length": part.task.prefix.length, "how": part.how, "exact": part.exact}
        for part in composition.parts
    ]
    ref = task.ref if published else None
    data = {"task": ref, "length": length, "exact": composition.exact, "parts": parts, **results}
    lines = [f"{part['task']}  {part['length']} positions: {HOW[part['how']]}" for part in parts]
    if results:
        lines += ["", _table(results, ref or "together")]
    elif not composition.exact:
        lines.append("what that costs is unknown until it is measured: pass --data FILE")
    done = f"{f'published {ref}' if published else 'not published'} ({length} positions)"
    emit(data, "\n".join([*lines, done]), json)


def _table(results: Mapping[str, Any], together: str) -> str:
    from foreword.evaluation.table import table

    columns = {**{f"{ref} alone": figures for ref, figures in results["alone"].items()}, together: results["metrics"]}
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    rows = [[name, *(f"{c[name]:.4f}" if name in c else "-" for c in columns.values())] for name in names]
    return table([["", *columns], *rows])
