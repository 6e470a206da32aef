"""``foreword train-many``."""

from __future__ import annotations

import json as jsons
from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import FlagsOf, expand_options
from foreword.cli.interruption import on_interrupt
from foreword.cli.options import Json, ModelOptions, Replace, emit, say
from foreword.cli.recipes import SharedRecipeFlags, check_recipe, make_recipe, read_settings
from foreword.cli.runs import resume_hint
from foreword.errors import SettingError, UsageError
from foreword.home import default_run_dir
from foreword.training.many.config import MultiTaskConfig
from foreword.training.setting import DATA, OUTPUT, check_type, settings_of

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.text.delimited import Layout
    from foreword.text.rows import Source
    from foreword.training.many.report import MultiTaskReport
    from foreword.training.many.task_source import TaskSource
    from foreword.training.recipe_file import RecipeFile

# Tasks that a summary names, at most.
MAX_NAMED = 20


@expand_options
def train_many(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR|FILE|RECIPE",
            help="A folder with a file of examples a task, or one JSONL file of all; or a YAML recipe.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A YAML recipe: flags as keys; flags given here win.", rich_help_panel=DATA)
    ] = None,
    task_field: Annotated[
        str, typer.Option(help="Field of one file's rows that names the task.", rich_help_panel=DATA)
    ] = "task",
    eval: Annotated[  # noqa: A002 - the flag is called --eval
        str | None,
        typer.Option(
            "--eval", help="Evaluation examples, likewise.", show_default="a tenth of each task's", rich_help_panel=DATA
        ),
    ] = None,
    *,
    config: Annotated[dict[str, Any], FlagsOf(MultiTaskConfig)],
    tasks: Annotated[
        str | None,
        typer.Option(help='Settings of single tasks, JSON or a file: {"NAME": {"lr": 0.01}}.', rich_help_panel=DATA),
    ] = None,
    hyperparameters: SharedRecipeFlags,
    publish_prefix: Annotated[
        str, typer.Option(help="Publish every task as this, followed by its name.", rich_help_panel=OUTPUT)
    ] = "",
    publish_all: Annotated[
        bool,
        typer.Option(
            "--publish-all", help="Publish those, too, that the base model is better at.", rich_help_panel=OUTPUT
        ),
    ] = False,
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Publish nothing: keep all in the run folder.", rich_help_panel=OUTPUT)
    ] = False,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Learn a prefix for each of many tasks in the same batches, and publish them.

    Example: foreword train-many users/ --template 'Review: {text}\\nSentiment:{mask}' --publish-prefix user-
    """
    if data is not None and data.endswith((".yaml", ".yml")):
        if recipe is not None:
            raise UsageError(f"{data} and --recipe {recipe} are two recipes; give one of them.")
        recipe, context.params["data"] = data, None
    file, settings = read_settings(context, recipe, unchecked=["tasks"])
    with file.locate_errors():
        _train_many(file, settings)


def _train_many(file: RecipeFile, settings: dict[str, Any]) -> None:
    if settings["data"] is None:
        raise UsageError("there is nothing to learn from; name a folder or a file, or a recipe that has it as 'data'.")
    recipe = make_recipe(settings)
    if settings["no_publish"] and (settings["publish_all"] or settings["publish_prefix"]):
        raise SettingError("no_publish", "--no-publish contradicts --publish-all and --publish-prefix; leave one out.")
    check_recipe(file, recipe, ModelOptions.from_settings(settings))
    with file.locate_errors("tasks"):
        tasks = _task_settings(settings["tasks"])
    from foreword.training.loop.distributed import is_main_process

    out = recipe.out or default_run_dir("train-many")
    config = MultiTaskConfig(
        recipe, Path(out), tasks, **{name: settings[name] for name in settings_of(MultiTaskConfig)}
    )
    source = _open_source(recipe.data, settings, recipe.layout)
    eval_source = _open_source(recipe.eval, settings, recipe.layout) if recipe.eval is not None else None
    config.check_names(source.names)
    with on_interrupt(lambda: resume_hint(out)):
        report = _train_tasks(config, source, eval_source, settings)
    if not is_main_process():
        return  # the main process writes and prints for all
    summary = {**report.to_json(), "run": out}
    from foreword.training.loop.run_dir import RunDir

    RunDir(config.out).write_summary(summary)
    report.plot(config.out / "gains.png")
    emit(summary, _summary(report, out), settings["json"])


def _train_tasks(
    config: MultiTaskConfig, source: TaskSource, eval_source: TaskSource | None, settings: dict[str, Any]
) -> MultiTaskReport:
    options = ModelOptions.from_settings(settings)
    lm = options.open_model(is_trainable=True)
    from foreword.bank.run_task import write_task
    from foreword.training.many.report import MultiTaskReport
    from foreword.training.many.train_many import train_many as run_train_many

    store = options.open_bank()
    transfer = options.find_task(config.recipe.parent, lm)

    def keep(task: Task, better: bool) -> str | None:
        if settings["no_publish"] or not (better or settings["publish_all"]):
            write_task(task, config.out / "tasks" / task.name)
            return None
        named = with_fields(task, name=settings["publish_prefix"] + task.name)
        return store.publish(named, replace=settings["replace"], reserved=[lm.name]).ref

    return MultiTaskReport(run_train_many(lm, config, source, eval_source, keep, transfer, say))


def _open_source(source: Source, settings: Mapping[str, Any], layout: Layout) -> TaskSource:
    """The tasks of a folder or a file. Raises UsageError for a name that cannot be published."""
    from foreword.training.many.task_source import open_task_source

    options, prefix = ModelOptions.from_settings(settings), settings["publish_prefix"]
    return open_task_source(source, settings["task_field"], lambda name: options.check_name(prefix + name), layout)


def _task_settings(source: object) -> Mapping[str, Any]:
    """Settings of single tasks, from a recipe's mapping, or from JSON text or a file."""
    if source is None or isinstance(source, Mapping):
        return source or {}
    check_type("tasks", source, (str, Mapping))
    assert isinstance(source, str)
    try:
        found = jsons.loads(source if source.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError("tasks", f"--tasks {source[:40]!r} is neither JSON nor a JSON file ({error}).") from error
    if not isinstance(found, dict):
        raise SettingError("tasks", '--tasks must be an object of names and settings, such as {"anna": {"lr": 0.01}}.')
    return found


def _summary(report: MultiTaskReport, out: str) -> str:
    found = report.to_json()
    lines = [f"{found['learned']} of {found['n']} tasks learned, {len(found['published'])} published"]
    if report.metric is not None:
        before, after, spread = found["metrics_before"][report.metric], found["metrics"][report.metric], found["gains"]
        lines.append(
            f"{report.metric} {before:.4f} -> {after:.4f}; gains: median {spread['median']:+.4f}, quartiles "
            f"{spread['low']:+.4f} and {spread['high']:+.4f}, from {spread['least']:+.4f} to {spread['most']:+.4f}"
        )
    if worse := report.base_better:
        lines.append(f"the base model is better at: {_join_names(worse)}")
    for status, which in (("left out", found["left_out"]), ("failed", found["failed"])):
        lines += [f"{status}: {name}: {why}" for name, why in list(which.items())[:MAX_NAMED]]
        if len(which) > MAX_NAMED:
            lines.append(f"{status}: {len(which) - MAX_NAMED} more, see {out}/summary.json")
    return "\n".join([*lines, f"the summary is {out}/summary.json, its picture {out}/gains.png"])


def _join_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
