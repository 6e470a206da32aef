"""``foreword eval``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.evaluation.evaluate import Report


def evaluate(
    name: Annotated[str, typer.Argument(help="Task, or task@version.")],
    data: Annotated[str, typer.Option(help="Examples, JSONL or CSV.")],
    compare: Annotated[str | None, typer.Option(help="Another task to run on the same examples.")] = None,
    label_field: Annotated[str, typer.Option(help="Field that holds the label.")] = "label",
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    allow_other_weights: options.OtherWeights = False,
    json: options.Json = False,
) -> None:
    """Measure a task on examples, exactly as it is served.

    Example: foreword eval reviews --data test.jsonl
    """
    from foreword.text.rows import read_rows

    rows = read_rows(data)
    store = options.open_bank(bank)
    tasks = [store.load(name)] + ([store.load(compare)] if compare is not None else [])
    lm = options.open_model(model, dtype, device, trust_remote_code)
    for task in tasks:
        options.check_model(task, lm, allow_other_weights=allow_other_weights)
    from foreword.evaluation.evaluate import evaluate as run_evaluate

    with options.open_engine(lm, allow_other_weights=allow_other_weights) as engine:
        reports = [run_evaluate(engine, task, rows, label_field=label_field) for task in tasks]
    data_out = _as_json(tasks[0], reports[0])
    if compare is not None:
        data_out["compare"] = _as_json(tasks[1], reports[1])
    lines = [_line(task, report) for task, report in zip(tasks, reports, strict=True)]
    options.emit(data_out, "\n".join(lines), json)


def _as_json(task: Task, report: Report) -> dict[str, Any]:
    return {"n": report.n, "metrics": report.metrics, "task": task.ref}


def _line(task: Task, report: Report) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
    return f"{task.ref}  n {report.n}  {metrics}"
