"""``foreword train-many``."""

from __future__ import annotations

import json as jsons
from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import flags, options, recipes, runs
from foreword.cli.interruption import going_on
from foreword.errors import SettingError, UsageError
from foreword.home import default_run_dir

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.training.many.config import MultiTaskConfig
    from foreword.training.many.report import MultiTaskReport
    from foreword.training.many.task_source import TaskSource
    from foreword.training.recipe_file import RecipeFile

# Tasks that a summary names one by one.
NAMED = 20


def train_many(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DIR|FILE", help="A folder with a file of examples a task, or one JSONL file of all."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML recipe: flags as keys; flags given here win.")] = None,
    task_field: Annotated[str, typer.Option(help="Field of one file's rows that names the task.")] = "task",
    eval: Annotated[  # noqa: A002 - the flag is called --eval
        str | None, typer.Option("--eval", help="Evaluation examples, likewise.", show_default="a tenth of each task's")
    ] = None,
    at_once: Annotated[int, typer.Option(help="Tasks that are learned, and in memory, at a time.")] = 32,
    min_rows: Annotated[int, typer.Option(help="Leave out tasks with fewer rows.")] = 8,
    shared_init: Annotated[
        bool, typer.Option("--shared-init", help="Start all from a prefix learned on everybody's rows.")
    ] = False,
    shared_length: Annotated[
        int, typer.Option(help="Virtual tokens learned on everybody's rows, then frozen in front of each task's own.")
    ] = 0,
    tasks: Annotated[
        str | None, typer.Option(help='Settings of single tasks, JSON or a file: {"NAME": {"lr": 0.01}}.')
    ] = None,
    method: flags.Method = "p-tuning-v2",
    template: flags.Template = None,
    verbalizer: flags.Verbalizer = None,
    label_field: flags.LabelField = "label",
    target_field: flags.TargetField = None,
    head: flags.Head = None,
    length: flags.Length = None,
    init: flags.Init = "auto",
    init_text: flags.InitText = None,
    lr: flags.Lr = None,
    epochs: flags.Epochs = None,
    max_steps: flags.MaxSteps = None,
    batch_size: flags.BatchSize = 16,
    accumulate: flags.Accumulate = 1,
    checkpointing: flags.Checkpointing = False,
    patience: flags.Patience = None,
    class_weights: flags.ClassWeights = None,
    calibrate: flags.Calibrate = False,
    rank: flags.Rank = None,
    encoder: flags.Encoder = None,
    projection: flags.Projection = None,
    freeze_first: flags.FreezeFirst = None,
    seed: flags.Seed = 0,
    resume: flags.Resume = False,
    out: flags.Out = None,
    publish_prefix: Annotated[str, typer.Option(help="Publish every task as this, followed by its name.")] = "",
    publish_all: Annotated[
        bool, typer.Option("--publish-all", help="Publish those, too, that the base model is better at.")
    ] = False,
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Publish nothing: keep all in the run folder.")
    ] = False,
    replace: options.Replace = False,
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """Learn a prefix for each of many tasks in the same batches, and publish them.

    Example: foreword train-many users/ --template 'Review: {text}\\nSentiment:{mask}' --publish-prefix user-
    """
    file, given = recipes.given(context, recipe, _ELSEWHERE)
    with file.locate_errors():
        _train_many(file, given)


# Keys of a recipe that are not hyper-parameters of each task's run.
_ELSEWHERE = (
    *("task_field", "at_once", "min_rows", "shared_init", "shared_length", "tasks", "publish_prefix", "publish_all"),
    *("no_publish", "bank", "model", "dtype", "device", "trust_remote_code", "replace", "json", "recipe"),
)


def _train_many(file: RecipeFile, given: dict[str, Any]) -> None:
    if given["data"] is None:
        raise UsageError("there is nothing to learn from; name a folder or a file, or a recipe that has it as 'data'.")
    run = recipes.recipe({key: value for key, value in given.items() if key not in _ELSEWHERE})
    if given["no_publish"] and (given["publish_all"] or given["publish_prefix"]):
        raise SettingError("no_publish", "--no-publish contradicts --publish-all and --publish-prefix; leave one out.")
    recipes.check(file, run)
    with file.locate_errors("tasks"):
        own = _own(given["tasks"])
    from foreword.training.loop.distributed import is_main_process
    from foreword.training.many.config import MultiTaskConfig

    out = run.out or default_run_dir("train-many")
    names = ("at_once", "min_rows", "shared_init", "shared_length")
    plan = MultiTaskConfig(run, Path(out), own, **{name: given[name] for name in names})
    users = _users(run.data, given)
    held = _users(run.eval, given) if run.eval is not None else None
    if unknown := sorted(set(own) - set(users.names)):
        raise SettingError("tasks", f"--tasks names '{unknown[0]}', of which there are no rows; correct the name.")
    with going_on(lambda: runs.left(out)):
        gains = _learn(plan, users, held, given)
    if not is_main_process():
        return  # the first process of several speaks for all
    summary = {**gains.to_json(), "run": out}
    from foreword.training.loop.run_dir import RunDir

    RunDir(plan.out).write_summary(summary)
    gains.plot(plan.out / "gains.png")
    options.emit(summary, _summary(gains, out), given["json"])


def _learn(plan: MultiTaskConfig, users: TaskSource, held: TaskSource | None, given: dict[str, Any]) -> MultiTaskReport:
    lm = options.open_model(given["model"], given["dtype"], given["device"], given["trust_remote_code"])
    from foreword.training.many.report import MultiTaskReport
    from foreword.training.many.train_many import train_many as learn

    store = options.open_bank(given["bank"])
    parent = plan.recipe.parent
    transfer = options.find_task(parent, given["bank"], lm) if parent is not None else None

    def keep(task: Task, better: bool) -> str | None:
        if given["no_publish"] or not (better or given["publish_all"]):
            runs.keep(task, plan.out / "tasks" / task.name)
            return None
        named = with_fields(task, name=given["publish_prefix"] + task.name)
        return store.publish(named, replace=given["replace"], reserved=[lm.name]).ref

    return MultiTaskReport(learn(lm, plan, users, held, keep, transfer, options.say))


def _users(source: str | None, given: Mapping[str, Any]) -> TaskSource:
    """The tasks of a folder or a file, all with names that can be published."""
    from foreword.bank.bank import check_free
    from foreword.training.many.task_source import open_task_source

    reserved = [given["model"] or options.default_model()]
    return open_task_source(
        source or "", given["task_field"], lambda name: check_free(given["publish_prefix"] + name, reserved)
    )


def _own(source: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Settings of single tasks."""
    if source is None or isinstance(source, Mapping):
        return source or {}
    try:
        found = jsons.loads(source if source.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError("tasks", f"--tasks {source[:40]!r} is neither JSON nor a JSON file ({error}).") from error
    if not isinstance(found, dict):
        raise SettingError("tasks", '--tasks must be an object of names and settings, such as {"anna": {"lr": 0.01}}.')
    return found


def _summary(gains: MultiTaskReport, out: str) -> str:
    found = gains.to_json()
    lines = [f"{found['learned']} of {found['n']} tasks learned, {len(found['published'])} published"]
    if gains.metric is not None:
        before, after, spread = found["metrics_before"][gains.metric], found["metrics"][gains.metric], found["gains"]
        lines.append(
            f"{gains.metric} {before:.4f} -> {after:.4f}; gains: median {spread['median']:+.4f}, quartiles "
            f"{spread['low']:+.4f} and {spread['high']:+.4f}, from {spread['least']:+.4f} to {spread['most']:+.4f}"
        )
    if worse := gains.base_better:
        lines.append(f"the base model is better at: {_named(worse)}")
    for status, which in (("left out", found["left_out"]), ("failed", found["failed"])):
        lines += [f"{status}: {name}: {why}" for name, why in list(which.items())[:NAMED]]
        if len(which) > NAMED:
            lines.append(f"{status}: {len(which) - NAMED} more, see {out}/summary.json")
    return "\n".join([*lines, f"the summary is {out}/summary.json, its picture {out}/gains.png"])


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
