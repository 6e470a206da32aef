"""``foreword classify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.completion import complete_task
from foreword.cli.flags import expand_options
from foreword.cli.options import EngineOptions, Json, emit, read_text
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.engine.engine import Engine

RowsAndLines = tuple[list[dict[str, Any]], list[str]]
"""Rows for ``--json``, and lines of text."""


@expand_options
def classify(
    name: Annotated[str, typer.Argument(help="Task, or task@version.", autocompletion=complete_task)],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to classify; - reads lines from stdin.")],
    *,
    options: EngineOptions,
    json: Json = False,
) -> None:
    """Label texts, or their words, with a task that has labels to choose from.

    Example: foreword classify reviews "a masterpiece" "dull and long"
    """
    from foreword.text.template import Template

    bank = options.open_bank()
    task = bank.load(name)
    bank.record_use(task)
    if task.template is None or not task.labels:
        raise UsageError(
            f"task '{name}' has no labels to choose from; train one with {{mask}}, or use generate or chat."
        )
    template = Template.parse(task.template)
    if (field := template.text_field) is None:
        count = len(template.fields)
        raise UsageError(f"task '{name}' has {count} input fields, classify takes one; ask /v1/classify.")
    if texts == ["-"]:
        texts = [line for line in read_text("-").splitlines() if line.strip()]
    lm = options.open_model()
    options.check_model(task, lm)
    run = _tag if task.head is not None and task.head.per_token else _classify
    with options.open_engine(lm) as engine:
        rows, lines = run(engine, task, field, texts)
    emit({"task": task.ref, "data": rows}, "\n".join(lines), json)


def _classify(engine: Engine, task: Task, field: str, texts: list[str]) -> RowsAndLines:
    from foreword.evaluation.predict import classify as run_classify
    from foreword.evaluation.predict import label_answer

    probs = run_classify(engine, task, [{field: text} for text in texts])
    rows = [{"index": i, **label_answer(task, row)} for i, row in enumerate(probs)]
    return rows, [f"{_line(row)}\t{texts[row['index']]}" for row in rows]


def _line(answer: dict[str, Any]) -> str:
    """A number; or the label and its probability; or, where there may be several labels, each with its own."""
    if "value" in answer:
        return f"{answer['value']:.4g}"
    if "labels" in answer:
        return ", ".join(f"{label} {answer['probs'][label]:.3f}" for label in answer["labels"]) or "-"
    return f"{answer['label']}\t{answer['probs'][answer['label']]:.3f}"


def _tag(engine: Engine, task: Task, field: str, texts: list[str]) -> RowsAndLines:
    """Split texts into words at white space and tag them; lines show ``word/tag``, without tag for ``O``."""
    from foreword.evaluation.predict import tag

    words = [text.split() for text in texts]
    found = tag(engine, task, [{field: each} for each in words])
    tags = [[max(word, key=word.__getitem__) for word in probs] for probs in found]
    rows = [{"index": i, "words": words[i], "tags": each} for i, each in enumerate(tags)]
    lines = [
        " ".join(w if t == "O" else f"{w}/{t}" for w, t in zip(words[i], each, strict=True))
        for i, each in enumerate(tags)
    ]
    return rows, lines
