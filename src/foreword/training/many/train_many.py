"""`train_many`: many tasks, each with its own rows, learned in the same batches over one frozen model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import DataError, UsageError
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.training.loop.distributed import barrier, is_own_work, rank
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.loop.run_dir import RunDir
from foreword.training.many.config import MultiTaskConfig
from foreword.training.many.shared_init import shared_init
from foreword.training.many.task_datasets import TaskDatasets
from foreword.training.many.task_progress import TaskProgress
from foreword.training.many.task_source import TaskSource
from foreword.training.many.trainer import MultiTaskTrainer, Publish


def train_many(
    lm: LanguageModel,
    config: MultiTaskConfig,
    train_source: TaskSource,
    eval_source: TaskSource | None,
    publish: Publish,
    transfer: Task | None,
    say: Say,
) -> list[dict[str, Any]]:
    """Learn this process's share of the tasks.

    Args:
        lm: the base model.
        config: settings of all tasks, and of single ones.
        train_source: the rows of every task.
        eval_source: its evaluation rows; without, a tenth of its rows is held out.
        publish: called with every learned task.
        transfer: the task that all start from.
        say: gets a line for every stage.

    Returns:
        a record of every task, of all processes.

    Raises:
        UsageError: there is nothing to learn, or a setting is wrong.
        TrainingError: the run folder holds another run, or cannot be written.
    """
    barrier()
    folder = RunDir.open(config.out, config.settings(lm, transfer), resume=config.recipe.resume)
    task_progress = TaskProgress(folder.path, rank())
    datasets = TaskDatasets(lm, config, train_source, eval_source)
    names = list(_trainable_tasks(datasets, task_progress, say))
    with (
        Engine(lm, cache_bytes=EVAL_CACHE_BYTES, reuse=False) as engine,
        gradient_checkpointing(lm, config.recipe.checkpointing),
    ):
        shared = shared_init(lm, config, engine, datasets.training_data, names, folder.path, say)
        trainer = MultiTaskTrainer(lm, config, datasets, engine, shared, transfer, publish, task_progress, say)
        trainer.train([name for name in names if is_own_work(name)])
    barrier()
    wanted = set(train_source.names)
    return [record for name, record in sorted(task_progress.records().items()) if name in wanted]


def _trainable_tasks(datasets: TaskDatasets, task_progress: TaskProgress, say: Say) -> Iterator[str]:
    """Check the rows of all tasks before anything is learned; names of the tasks that can be learned.

    Raises UsageError if there are none.
    """
    reasons, records = [], task_progress.records()
    names = datasets.train_source.names
    for name in names:
        try:
            data = datasets.training_data(name)
            if len(data.labels) == 1 and data.problem_type == "single_label_classification":
                raise DataError(
                    f"it has only the label '{data.labels[0]}', so there is nothing to tell apart; give the others "
                    "with --verbalizer"
                )
        except UsageError as error:
            reasons.append(f"{name}: {error}")
            if is_own_work(name) and records.get(name, {}).get("why") != str(error):
                task_progress.write_record({"task": name, "status": "left out", "why": str(error)})
            continue
        yield name
    for reason in reasons[:5]:
        say(f"left out: {reason}")
    if len(reasons) > 5:
        say(f"left out: {len(reasons) - 5} more, see the summary")
    if len(reasons) == len(names):
        raise UsageError(f"none of the {len(names)} tasks can be learned; the first: {reasons[0]}")
