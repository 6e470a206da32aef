"""`evaluate`: ``foreword eval`` from Python."""

from __future__ import annotations

from contextlib import nullcontext

from foreword.api.defaults import BankSource, find_task, open_model
from foreword.api.local_engine import LocalEngine
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.evaluate import evaluate as run_evaluate
from foreword.evaluation.report import Report
from foreword.models import LanguageModel
from foreword.text.conversation import LearnTurns
from foreword.text.rows import Source, read_rows


def evaluate(
    engine: LocalEngine | EngineProtocol | LanguageModel | str | None,
    task: Task | str,
    data: Source,
    *,
    label_field: str | None = None,
    learn_turns: LearnTurns = "all",
    limit: int | None = None,
    bank: BankSource = None,
) -> Report:
    """Measure a task on examples, exactly as it is served.

    >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "dull and long", "label": "bad"}]
    >>> foreword.evaluate(engine, "mood", rows).n
    2

    Args:
        engine: a running `foreword.Engine`; or a model, loaded or by name (``None`` is the commands' model), that runs
            for this evaluation alone.
        task: a task, or its name in the bank.
        data: rows with the template's fields and the label, the tags or the target: a list of dicts, a
            `datasets.Dataset`, a DataFrame, or the name of a file or data set.
        label_field: field that holds the label; ``None`` for the one that the task was learned from.
        learn_turns: of conversations, the assistant's turns that are measured.
        limit: use the first rows only.
        bank: where a name is looked up; by default the engine's bank, else that of the commands.

    Raises:
        UnknownTask, ModelMismatch: no such task, or one of another model.
        DataError, TemplateError, VerbalizerError: naming the row that is wrong.
    """
    rows = read_rows(data)[:limit]
    if isinstance(engine, LocalEngine):
        bank, engine = bank if bank is not None else engine.bank, engine.engine
    if engine is None or isinstance(engine, LanguageModel | str):
        running = Engine(open_model(engine))
    else:
        running = nullcontext(engine)
    with running as opened:
        found = find_task(task, bank, opened.identity)
        return run_evaluate(opened, found, rows, label_field=label_field, learn_turns=learn_turns)
