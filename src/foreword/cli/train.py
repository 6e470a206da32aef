"""``foreword train``."""

from __future__ import annotations

from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import expand_options
from foreword.cli.interruption import on_interrupt
from foreword.cli.options import Json, ModelOptions, Replace, emit, say
from foreword.cli.recipes import RecipeFlags, check_recipe, make_recipe, read_settings, read_training_data
from foreword.cli.runs import publish_hint, resume_hint
from foreword.errors import UsageError
from foreword.home import default_run_dir
from foreword.training.setting import OUTPUT

if TYPE_CHECKING:
    from foreword.training.recipe_file import RecipeFile
    from foreword.training.train import TrainResult


@expand_options
def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A YAML recipe: flags as keys; flags given here win.")] = None,
    *,
    hyperparameters: RecipeFlags,
    publish: Annotated[
        str | None, typer.Option(help="Publish the task under this name.", rich_help_panel=OUTPUT)
    ] = None,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Learn a prompt for a frozen model, and publish it.

    Example: foreword train --data reviews.jsonl --template 'Review: {text}\\nSentiment:{mask}' --publish reviews
    """
    file, settings = read_settings(context, recipe)
    with file.locate_errors():
        _train(file, settings)


def _train(file: RecipeFile, settings: dict[str, Any]) -> None:
    """Train, write the run folder and publish, by the settings of flags and recipe."""
    recipe = make_recipe(settings)
    options = ModelOptions.from_settings(settings)
    name = settings["publish"]
    store = options.open_bank()
    if name is not None:
        if recipe.weights == "all":
            raise UsageError(
                "--weights all changes the model itself, which no task can carry; leave --publish out, and load what "
                "was learned with --model FOLDER."
            )
        with file.locate_errors("publish"):
            options.check_name(name)
    check_recipe(file, recipe, options)
    out = recipe.out or default_run_dir(name or recipe.method)
    with on_interrupt(lambda: resume_hint(out)):
        data = read_training_data(recipe)
        lm = options.open_model(is_trainable=True)
        from foreword.api.train import train as run_train
        from foreword.training.loop.distributed import is_main_process

        made = with_fields(recipe, out=out)
        result = run_train(lm, made, data=data, publish=name, bank=store, replace=settings["replace"], say=say)
        if not is_main_process():
            return  # the main process of a distributed run writes and publishes
    task = result.task
    ref = task.ref if name is not None else None
    summary = {
        "n": result.n,
        "metrics": result.metrics,
        "task": ref,
        "metrics_before": result.before,
        "trained_parameters": result.trained_parameters,
        "prefix_bytes": task.prefix.nbytes,
        "task_bytes": task.nbytes,
        "run": str(result.folder),
        "model": str(result.model) if result.model is not None else None,
    }
    emit(summary, _summary(result, ref), settings["json"])


def _summary(result: TrainResult, ref: str | None) -> str:
    shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    if result.model is not None:
        return f"{shown}\na model of its own; load it with --model {result.model}"
    return f"{shown}\n{publish_hint(ref, result.folder)}"
