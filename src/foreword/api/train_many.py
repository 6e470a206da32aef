"""`train_many`: ``foreword train-many`` from Python."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

from foreword.api.defaults import BankSource, check_names, find_task, open_bank, open_model, reserved_names
from foreword.bank.run_task import write_task
from foreword.core import Task
from foreword.errors import SettingError
from foreword.home import default_run_dir
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.training.loop.distributed import is_main_process
from foreword.training.loop.run_dir import RunDir
from foreword.training.many.config import MultiTaskConfig
from foreword.training.many.report import MultiTaskReport
from foreword.training.many.task_source import open_task_source
from foreword.training.many.train_many import train_many as run_train_many
from foreword.training.recipe import Recipe


def train_many(
    lm: LanguageModel | str | None,
    recipe: Recipe,
    *,
    task_field: str = "task",
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    publish_prefix: str = "",
    publish_all: bool = False,
    no_publish: bool = False,
    bank: BankSource = None,
    replace: bool = False,
    say: Say = lambda line: print(line, file=sys.stderr),
    **config: Any,
) -> MultiTaskReport:
    """Learn a prefix for each of many tasks in the same batches, and publish those that beat the base model.

    >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "dull and long", "label": "bad"}] * 8
    >>> rows = [{**row, "task": user} for user in ("anna", "ben") for row in rows]
    >>> recipe = foreword.Recipe(data=rows, template="{text}\\nMood:{mask}", max_steps=2)
    >>> report = foreword.train_many(lm, recipe, publish_prefix="user-", publish_all=True)
    >>> [ref.split("@")[0] for ref in report.to_json()["published"]]
    ['user-anna', 'user-ben']

    Args:
        lm: the base model, loaded or by name; ``None`` is the commands' model.
        recipe: of all tasks; ``data`` and ``eval`` are a folder with a file of rows a task, or one JSONL file or rows
            in memory of all.
        task_field: field that names the task of a row, where one source has the rows of all.
        tasks: settings of single tasks by name, such as ``{"anna": {"lr": 0.01}}``.
        publish_prefix: publish every task as this, followed by its name.
        publish_all: publish those, too, that the base model is better at.
        no_publish: publish nothing; all tasks are kept in the run folder.
        bank: where tasks are published; by default the commands' bank.
        replace: publish over tasks that belong to another model.
        say: gets a line for every stage.
        config: ``at_once``, ``min_rows``, ``shared_init``, ``shared_length``, as the command has them.

    Raises:
        UsageError: there is nothing to learn, or a setting is wrong.
        TrainingError: the run folder holds another run, or cannot be written.
    """
    if no_publish and (publish_all or publish_prefix):
        raise SettingError("no_publish", "no_publish contradicts publish_all and publish_prefix; leave one out.")
    settings = MultiTaskConfig(recipe, Path(recipe.out or default_run_dir("train-many")), dict(tasks or {}), **config)

    base = lm

    def check_name(name: str) -> None:
        check_names([publish_prefix + name], base)

    source = open_task_source(recipe.data, task_field, check_name, recipe.layout)
    eval_source = (
        open_task_source(recipe.eval, task_field, check_name, recipe.layout) if recipe.eval is not None else None
    )
    settings.check_names(source.names)
    lm = open_model(lm)
    store, reserved = open_bank(bank), reserved_names(lm)
    transfer = find_task(recipe.parent, store, lm.identity) if recipe.parent is not None else None

    def keep(task: Task, better: bool) -> str | None:
        if no_publish or not (better or publish_all):
            write_task(task, settings.out / "tasks" / task.name)
            return None
        named = with_fields(task, name=publish_prefix + task.name)
        return store.publish(named, replace=replace, reserved=reserved).ref

    report = MultiTaskReport(run_train_many(lm, settings, source, eval_source, keep, transfer, say))
    if is_main_process():
        RunDir(settings.out).write_summary({**report.to_json(), "run": str(settings.out)})
    return report
