"""``foreword eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.completion import complete_task, complete_values
from foreword.cli.engines import EVALUATION_ENGINES, open_engine_bank
from foreword.cli.flags import expand_options
from foreword.cli.interruption import command_line, on_interrupt
from foreword.cli.options import EngineOptions, Json, emit, say, typed_options
from foreword.errors import UnknownTask, UsageError
from foreword.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foreword.bank.bank import Bank
    from foreword.core import Task
    from foreword.engine.protocol import EngineProtocol
    from foreword.evaluation.report import Report
    from foreword.text.conversation import LearnTurns
    from foreword.text.long_rows import LongRows
    from foreword.text.rows import Row

# What may stand beside --ratings.
_WITH_RATINGS = ("ratings", "json")


@expand_options
def evaluate(
    context: typer.Context,
    name: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Task, or task@version; further ones are compared with it, base is the base model.",
            autocompletion=complete_task,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Examples: JSONL, CSV, Parquet or hub:NAME:SPLIT.")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="The same as a further NAME; may be repeated.",
            autocompletion=complete_task,
        ),
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Field that holds the label.", show_default="the task's")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns of a CSV or TSV file without a header.")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Character between the cells of a CSV file.", show_default="found in its header"),
    ] = None,
    long_rows: Annotated[str, typer.Option(help="Rows that are too long: refuse, skip or cut FIELD.")] = "refuse",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a row behind the prefix, at most.", min=1, show_default="the context")
    ] = None,
    learn_turns: Annotated[str, typer.Option(help="Of conversations: the turns to measure, all or last.")] = "all",
    limit: Annotated[int | None, typer.Option(help="Use the first N examples.", min=1)] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write every prediction to this file, as JSONL.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show every class, and the confusion matrix.")] = False,
    blind: Annotated[
        Path | None, typer.Option(help="Write a rating sheet for people, CSV, that hides which of two tasks is which.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws the order of the answers in --blind.", show_default="0")
    ] = None,
    ratings: Annotated[Path | None, typer.Option(help="Read a filled rating sheet, and nothing else.")] = None,
    engine: Annotated[
        str, typer.Option(help="embedded or llamacpp.", autocompletion=complete_values(EVALUATION_ENGINES))
    ] = "embedded",
    *,
    options: EngineOptions,
    json: Json = False,
) -> None:
    """Measure a task on examples, exactly as it is served.

    Example: foreword eval reviews base --data test.jsonl
    """
    if ratings is not None:
        _check_ratings_alone(context)
        return _emit_ratings(ratings, json)
    names = [*(name or ()), *(compare or ())]
    if not name or data is None:
        raise UsageError("name a task and its examples: foreword eval NAME --data FILE.")
    if engine not in EVALUATION_ENGINES:
        raise UsageError(f"engine {engine!r} does not evaluate; choose {' or '.join(EVALUATION_ENGINES)}.")
    if learn_turns not in ("all", "last"):
        raise UsageError(f"--learn-turns must be all or last, got {learn_turns!r}.")
    _check_files(names, blind, seed, predictions)
    from foreword.text.delimited import Layout
    from foreword.text.long_rows import LongRows
    from foreword.text.rows import read_data

    fitting = LongRows.parse(long_rows)
    read = read_data(data, Layout.parse(columns, delimiter))
    for warning in read.warnings:
        say(f"warning: {warning}")
    rows = read.rows[:limit]
    tasks_or_base = _load_tasks(open_engine_bank(engine, options.bank), names, options.model_name)
    _check_tasks(tasks_or_base, per_class)
    with (
        on_interrupt(lambda: f"nothing was written; start again: {command_line()}"),
        EVALUATION_ENGINES[engine](options) as running,
    ):
        tasks = _resolve_tasks(tasks_or_base, running, options)
        rows = _fit(running, tasks, rows, fitting, max_length)
        reports = _evaluate(running, tasks, rows, label_field, "last" if learn_turns == "last" else "all")
    if predictions is not None:
        from foreword.evaluation.report import write_predictions

        write_predictions(predictions, reports)
    if blind is not None:
        _write_rating_sheet(blind, tasks, rows, reports, seed or 0)
    first, *others = [_report_to_json(ref, report, per_class) for ref, report in reports.items()]
    emit({**first, "compare": others} if others else first, _format_reports(reports, per_class), json)


def _check_ratings_alone(context: typer.Context) -> None:
    """Raise UsageError for arguments that have no effect beside ``--ratings``."""
    typed = typed_options(context)
    for parameter in context.command.params:
        if parameter.name in typed and parameter.name not in _WITH_RATINGS:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
            raise UsageError(f"--ratings reads a filled sheet and its key, nothing else; leave out {shown}.")


def _emit_ratings(sheet: Path, json: bool) -> None:
    from foreword.evaluation.ratings import Ratings

    results = Ratings.read(sheet)
    emit(results.to_json(), str(results), json)


def _check_files(names: Sequence[str], blind: Path | None, seed: int | None, predictions: Path | None) -> None:
    """Raise UsageError for output files that could not be written, before anything is evaluated."""
    if seed is not None and blind is None:
        raise UsageError("--seed draws the order of answers in a rating sheet; leave it out without --blind.")
    if blind is not None:
        from foreword.evaluation.rating_sheet import check_unused

        if len(names) != 2:
            raise UsageError(f"--blind is for two tasks, got {len(names)}; name one with --compare.")
        check_unused(blind)
    for file in (blind, predictions):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {file.absolute().parent} for {file.name}; make it first.")


def _load_tasks(bank: Bank, names: Sequence[str], base: str) -> list[Task | None]:
    """Tasks by name; ``None`` for the base model, which ``base`` means unless a task is called so."""
    tasks: list[Task | None] = []
    for name in names:
        try:
            tasks.append(None if name == base else bank.load(name))
            if tasks[-1] is not None:
                bank.record_use(tasks[-1])
        except UnknownTask:
            if name != "base":
                raise
            tasks.append(None)
    return tasks


def _check_tasks(tasks: Sequence[Task | None], per_class: bool) -> None:
    from foreword.text.template import Template

    refs = [task.ref for task in tasks if task is not None]
    if not refs:
        raise UsageError("the base model alone has no template to be measured with; name a task beside it.")
    if len(set(refs)) < len(refs) or tasks.count(None) > 1:
        raise UsageError("a task is named twice; name every task once.")
    for task in tasks:
        if task is not None and task.kind != "learned" and task.template is None:
            raise UsageError(
                f"task '{task.name}' is a text in front of requests and has no template to ask the examples with; name "
                "a learned task, or stack one behind it: foreword bank compose."
            )
        if per_class and task is not None and task.template and Template.parse(task.template).target is not None:
            raise UsageError(f"task '{task.name}' generates text, which has no classes; leave out --per-class.")


def _resolve_tasks(tasks: Sequence[Task | None], engine: EngineProtocol, options: EngineOptions) -> list[Task]:
    """Check tasks against the model, and replace ``None`` by the base model with the template of the first task."""
    from foreword.evaluation.baseline import baseline_task

    first = next(task for task in tasks if task is not None)
    for task in tasks:
        if task is not None:
            options.check_model(task, engine)
    return [baseline_task(first, engine.name, engine.identity) if task is None else task for task in tasks]


def _fit(
    engine: EngineProtocol, tasks: Sequence[Task], rows: list[Row], long_rows: LongRows, max_length: int | None
) -> list[Row]:
    """The rows that every task can be asked, said if they are not all."""
    from foreword.evaluation.evaluate import fit_rows

    fitted = fit_rows(engine, tasks, rows, long_rows, max_length)
    if note := fitted.note(len(rows), "a field"):
        say(note)
    return fitted.rows


def _evaluate(
    engine: EngineProtocol,
    tasks: Sequence[Task],
    rows: Sequence[Row],
    label_field: str | None,
    learn_turns: LearnTurns,
) -> dict[str, Report]:
    """A report for every task, by name and version."""
    from foreword.evaluation.evaluate import evaluate as run_evaluate

    with Progress("evaluating", _count_requests(tasks, len(rows)), "questions", poll=lambda: _count_answered(engine)):
        reports = {
            task.ref: run_evaluate(engine, task, rows, label_field=label_field, learn_turns=learn_turns)
            for task in tasks
        }
    if missing := sorted({name for report in reports.values() for name in report.unavailable_metrics}):
        say(f"not measured: {', '.join(missing)}; they need: pip install 'foreword[eval]'")
    return reports


def _count_requests(tasks: Sequence[Task], rows: int) -> int:
    """Requests of an evaluation: one a member of an ensemble; for a text, its generation and its perplexity."""
    from foreword.text.template import Template

    writes = [task.template is None or Template.parse(task.template).target is not None for task in tasks]
    return rows * sum(2 if text else 1 + len(task.members) for task, text in zip(tasks, writes, strict=True))


def _count_answered(engine: EngineProtocol) -> int:
    counts = engine.statistics()
    generated = counts["requests"] - counts["waiting"] - counts.get("running", 0)
    return int(counts["scored"] + max(generated, 0))


def _write_rating_sheet(
    sheet: Path, tasks: Sequence[Task], rows: Sequence[Row], reports: Mapping[str, Report], seed: int
) -> None:
    from foreword.evaluation.rating_sheet import key_file, write_sheet
    from foreword.text.conversation import Conversation, is_conversation
    from foreword.text.rows import Row
    from foreword.text.template import Template

    templates = [Template.parse(task.template) for task in tasks if task.template is not None]
    fields = dict.fromkeys(field for template in templates for field in template.fields)
    if not templates and is_conversation(rows[0].values):
        fields = {"conversation": None}
        rows = [Row({"conversation": Conversation.read(row.values).history_text}, row.where) for row in rows]
    same = write_sheet(sheet, list(fields), rows, reports, seed)
    say(f"wrote {sheet} for people to fill, and {key_file(sheet)}, which says whose answers they are")
    if same:
        say(f"{same} of {len(rows)} rows have the same answer twice; left empty, they count as ties")


def _report_to_json(ref: str, report: Report, per_class: bool) -> dict[str, Any]:
    classes = report.classes_to_json() if per_class else {}
    return {"n": report.n, "metrics": report.metrics, "task": ref, **classes}


def _format_reports(reports: Mapping[str, Report], per_class: bool) -> str:
    from foreword.evaluation.report import classes_text, side_by_side

    parts = [side_by_side(reports)]
    if per_class:
        parts += [f"{ref}\n\n{classes_text(report)}" for ref, report in reports.items()]
    return "\n\n".join(parts)
